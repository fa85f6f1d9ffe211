{{/*
The pods of a model. Takes (list root model role): the role is service, or worker for the further nodes of a group
in which vLLM runs a model.
*/}}
{{- define "chatrpc.service.pod" -}}
{{- $root := index . 0 }}
{{- $model := index . 1 }}
{{- $role := index . 2 }}
{{- $isService := eq $role "service" }}
{{- $isVllm := eq $model.engine "vllm" }}
{{- $names := list $root $model }}
{{- $labels := include "chatrpc.labels" (list $root $model.name) | fromYaml }}
{{- $selector := include "chatrpc.selectorLabels" (list $root $model.name) -}}
metadata:
  labels:
    {{- mergeOverwrite $labels (dict "app.kubernetes.io/component" $role) | toYaml | nindent 4 }}
    {{- with $model.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    kubectl.kubernetes.io/default-container: {{ $role }}
    {{- if $isService }}
    {{- include "chatrpc.scrapeAnnotations" (list $root (include "chatrpc.metricsPort" $root)) | indent 4 }}
    {{- end }}
    {{- with $model.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- include "chatrpc.pod.spec" (list $root $model $selector) | nindent 2 }}
  {{- with $model.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- include "chatrpc.list" (list $model.initContainers "initContainers") | indent 2 }}
  containers:
    - name: {{ $role }}
      {{- $image := dict "tag" $model.image.tag "repository" (include "chatrpc.model.repository" $model) }}
      image: {{ include "chatrpc.image" (list $root $image) | quote }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      {{- if $isService }}
      args:
        {{- include "chatrpc.service.args" $names | trim | nindent 8 }}
      {{- else }}
      command: [/opt/chatrpc/bin/vllm, serve]
      args:
        {{- include "chatrpc.worker.args" $names | trim | nindent 8 }}
      {{- end }}
      {{- $keeps := has $model.storage.kind (list "emptyDir" "pvc") }}
      {{- if or (ne $model.engine "openai") $model.env }}
      env:
        {{- if ne $model.engine "openai" }}
        # Downloaded weights, and other files of the hub's library.
        - name: HF_HOME
          value: {{ ternary (printf "%s/huggingface" $model.storage.mountPath) "/tmp/huggingface" $keeps | quote }}
        {{- end }}
        {{- if $model.storage.offline }}
        - name: HF_HUB_OFFLINE
          value: "1"
        {{- end }}
        {{- if $model.storage.hubTokenSecret }}
        - name: HF_TOKEN_PATH
          value: /etc/chatrpc/hub/token
        {{- end }}
        {{- if $isVllm }}
        {{- if $keeps }}
        # Compiled kernels, which a restarted pod uses again.
        - name: VLLM_CACHE_ROOT
          value: {{ printf "%s/vllm" $model.storage.mountPath | quote }}
        {{- end }}
        {{- if eq (include "chatrpc.model.isGroup" $model) "true" }}
        # The address at which the other nodes reach this one.
        - name: VLLM_HOST_IP
          valueFrom:
            fieldRef:
              fieldPath: status.podIP
        {{- end }}
        {{- end }}
        {{- with $model.env }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- end }}
      {{- include "chatrpc.list" (list $model.envFrom "envFrom") | indent 6 }}
      {{- if $isService }}
      ports:
        - name: grpc
          containerPort: {{ include "chatrpc.grpcPort" $root }}
        - name: admin
          containerPort: {{ include "chatrpc.adminPort" $root }}
        - name: metrics
          containerPort: {{ include "chatrpc.metricsPort" $root }}
      # On the admin port, which has no TLS. Liveness does not depend on load.
      startupProbe:
        grpc:
          port: {{ include "chatrpc.adminPort" $root }}
          service: startup
        {{- toYaml $model.probes.startup | nindent 8 }}
        failureThreshold: {{ max 1 (ceil (divf $model.probes.startupSeconds $model.probes.startup.periodSeconds)) }}
      readinessProbe:
        grpc:
          port: {{ include "chatrpc.adminPort" $root }}
          service: readiness
        {{- toYaml $model.probes.readiness | nindent 8 }}
      livenessProbe:
        grpc:
          port: {{ include "chatrpc.adminPort" $root }}
          service: liveness
        {{- toYaml $model.probes.liveness | nindent 8 }}
      {{- include "chatrpc.lifecycle" (list $root $model.drain) | nindent 6 }}
      {{- end }}
      resources:
        {{- $disks := list $model.resources.tmpSize }}
        {{- if eq $model.storage.kind "emptyDir" }}
        {{- $disks = append $disks $model.storage.size }}
        {{- end }}
        {{- if eq $model.prefixCache.kind "emptyDir" }}
        {{- $disks = append $disks $model.prefixCache.size }}
        {{- end }}
        {{- include "chatrpc.resources" (list $model.resources $disks) | nindent 8 }}
          {{- if gt (int $model.gpu.count) 0 }}
          {{ $model.gpu.resource }}: {{ int $model.gpu.count | quote }}
          {{- end }}
      securityContext:
        {{- include "chatrpc.containerSecurityContext" (list $root $model) | nindent 8 }}
      volumeMounts:
        - name: tmp
          mountPath: /tmp
        {{- if $isVllm }}
        - name: shm
          mountPath: /dev/shm
        {{- end }}
        {{- if ne $model.storage.kind "none" }}
        - name: model
          mountPath: {{ $model.storage.mountPath }}
          readOnly: {{ or $model.storage.readOnly (eq $model.storage.kind "image") }}
        {{- end }}
        {{- if ne $model.prefixCache.kind "none" }}
        - name: prefixes
          mountPath: {{ include "chatrpc.prefixCache.path" $ }}
        {{- end }}
        {{- if $model.storage.hubTokenSecret }}
        {{- include "chatrpc.mount" "hub" | nindent 8 }}
        {{- end }}
        {{- if and $isService $root.Values.access.serviceKeys.secret }}
        {{- include "chatrpc.mount" "keys" | nindent 8 }}
        {{- end }}
        {{- if and $isService $root.Values.tls.grpc.secret }}
        {{- include "chatrpc.mount" "tls" | nindent 8 }}
        {{- end }}
        {{- with $model.upstream }}
        {{- if .apiKey.secret }}
        {{- include "chatrpc.mount" "upstream-key" | nindent 8 }}
        {{- end }}
        {{- if .caSecret }}
        {{- include "chatrpc.mount" "upstream-ca" | nindent 8 }}
        {{- end }}
        {{- if .clientSecret }}
        {{- include "chatrpc.mount" "upstream-tls" | nindent 8 }}
        {{- end }}
        {{- end }}
        {{- with $model.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    {{- with $model.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    - name: tmp
      emptyDir:
        sizeLimit: {{ $model.resources.tmpSize }}
    {{- if $isVllm }}
    # Shared memory of the processes of one pod. It counts as the pod's memory.
    - name: shm
      emptyDir:
        medium: Memory
        sizeLimit: {{ $model.vllm.shmSize }}
    {{- end }}
    {{- if eq $model.storage.kind "emptyDir" }}
    - name: model
      emptyDir:
        sizeLimit: {{ $model.storage.size }}
    {{- else if eq $model.storage.kind "pvc" }}
    - name: model
      persistentVolumeClaim:
        claimName: {{ default (include "chatrpc.model.fullname" $names) $model.storage.existingClaim }}
        readOnly: {{ $model.storage.readOnly }}
    {{- else if eq $model.storage.kind "image" }}
    - name: model
      image:
        reference: {{ required (printf "models: %s: storage.reference is missing" $model.name) $model.storage.reference | quote }}
        pullPolicy: {{ $root.Values.image.pullPolicy }}
    {{- end }}
    {{- if eq $model.prefixCache.kind "emptyDir" }}
    - name: prefixes
      emptyDir:
        sizeLimit: {{ $model.prefixCache.size }}
    {{- else if eq $model.prefixCache.kind "pvc" }}
    - name: prefixes
      persistentVolumeClaim:
        claimName: {{ $model.prefixCache.existingClaim }}
    {{- end }}
    {{- with $model.storage.hubTokenSecret }}
    {{- include "chatrpc.secretVolume" (dict "name" "hub" "secret" . "items" (dict "token" "token")) | nindent 4 }}
    {{- end }}
    {{- with $root.Values.access.serviceKeys }}
    {{- if and $isService .secret }}
    {{- include "chatrpc.secretVolume" (dict "name" "keys" "secret" .secret "items" (dict .key "keys.toml")) | nindent 4 }}
    {{- end }}
    {{- end }}
    {{- with $root.Values.tls.grpc }}
    {{- if and $isService .secret }}
    {{- $items := dict "tls.crt" "tls.crt" "tls.key" "tls.key" }}
    {{- $clientCa := ternary (dict "ca.crt" "ca.crt") (dict) (ne .clientSecret "") }}
    {{- include "chatrpc.secretVolume" (dict "name" "tls" "secret" .secret "items" (merge $items $clientCa)) | nindent 4 }}
    {{- end }}
    {{- end }}
    {{- with $model.upstream }}
    {{- if .apiKey.secret }}
    {{- include "chatrpc.secretVolume" (dict "name" "upstream-key" "secret" .apiKey.secret "items" (dict .apiKey.key "api-key")) | nindent 4 }}
    {{- end }}
    {{- if .caSecret }}
    {{- include "chatrpc.secretVolume" (dict "name" "upstream-ca" "secret" .caSecret "items" (dict "ca.crt" "ca.crt")) | nindent 4 }}
    {{- end }}
    {{- if .clientSecret }}
    {{- include "chatrpc.secretVolume" (dict "name" "upstream-tls" "secret" .clientSecret "items" (dict "tls.crt" "tls.crt" "tls.key" "tls.key")) | nindent 4 }}
    {{- end }}
    {{- end }}
    {{- with $model.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{/* Takes a model, or the gateway's values: true if each replica is a group of pods on several nodes. */}}
{{- define "chatrpc.model.isGroup" -}}
{{- gt (dig "vllm" "nodes" 1 . | int) 1 }}
{{- end }}

{{/* Takes a model: the kind of the object that has its replicas. */}}
{{- define "chatrpc.model.kind" -}}
{{- ternary "LeaderWorkerSet" "Deployment" (eq (include "chatrpc.model.isGroup" .) "true") }}
{{- end }}

{{/*
Takes (list root model): the name of the object that has its replicas. The controller of groups creates a Service with the
name of the group, so the name differs from that of our Service.
*/}}
{{- define "chatrpc.model.workload" -}}
{{- include "chatrpc.model.fullname" . }}{{ if eq (include "chatrpc.model.isGroup" (last .)) "true" }}-group{{ end }}
{{- end }}

{{/* The directory of the prefix cache on disk. */}}
{{- define "chatrpc.prefixCache.path" -}}
/var/lib/chatrpc-prefixes
{{- end }}

{{/* Takes a model: the repository of its image. */}}
{{- define "chatrpc.model.repository" -}}
{{- if eq .engine "vllm" }}{{ .image.vllmRepository }}
{{- else if eq .engine "openai" }}{{ .image.upstreamRepository }}
{{- else if gt (int .gpu.count) 0 }}{{ .image.cudaRepository }}
{{- else }}{{ .image.repository }}
{{- end }}
{{- end }}
