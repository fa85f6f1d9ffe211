{{/* The common part of all pods. Takes (list root values labels), with the values of the component. */}}
{{- define "chatrpc.pod.spec" -}}
{{- $root := index . 0 }}
{{- $own := index . 1 }}
{{- $selector := index . 2 -}}
serviceAccountName: {{ include "chatrpc.serviceAccountName" $root }}
automountServiceAccountToken: false
# Off, because the variables of a Service with the name of this chart have the names of our options.
enableServiceLinks: false
securityContext:
  {{- toYaml (mergeOverwrite (deepCopy $root.Values.podSecurityContext) $own.podSecurityContext) | nindent 2 }}
terminationGracePeriodSeconds: {{ include "chatrpc.gracePeriod" $own.drain }}
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $own.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $own.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if $own.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml $own.topologySpreadConstraints | nindent 2 }}
{{- else if not (eq (include "chatrpc.model.isGroup" $own) "true") }}
topologySpreadConstraints:
  {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - topologyKey: {{ . }}
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- $selector | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end }}
{{- end }}

{{/* Takes (list root values): the last part of every main container. */}}
{{- define "chatrpc.containerSecurityContext" -}}
{{- toYaml (mergeOverwrite (deepCopy (first .).Values.containerSecurityContext) (last .).containerSecurityContext) }}
{{- end }}

{{/* Takes (list values label): a list of values under its label, or nothing if the list is empty. */}}
{{- define "chatrpc.list" -}}
{{- with first . }}
{{ last $ }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Takes a quantity such as 20Gi: its number of bytes. */}}
{{- define "chatrpc.bytes" -}}
{{- $units := dict "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 "Pi" 1125899906842624.0 }}
{{- $number := regexFind "^[0-9.]+" . }}
{{- $unit := trimPrefix $number . }}
{{- mulf (float64 $number) (ternary 1.0 (get $units $unit) (eq $unit "")) | ceil | int64 }}
{{- end }}

{{/* Seconds from the start of the termination to SIGKILL: sleep, delay, drain timeout and some more. */}}
{{- define "chatrpc.gracePeriod" -}}
{{- add (ceil .preStopSeconds) (ceil .delaySeconds) (ceil .timeoutSeconds) 10 }}
{{- end }}

{{/* Takes (list root drain). */}}
{{- define "chatrpc.lifecycle" -}}
{{- $root := first . }}
{{- $seconds := (last .).preStopSeconds }}
{{- if gt (int $seconds) 0 }}
{{- if semverCompare "<1.30.0-0" $root.Capabilities.KubeVersion.Version }}
{{- fail "drain.preStopSeconds needs Kubernetes 1.30. drain.delaySeconds has the same effect on every version." }}
{{- end }}
lifecycle:
  preStop:
    sleep:
      seconds: {{ int $seconds }}
{{- end }}
{{- end }}

{{/*
Takes (list resources quantities): quantities are the sizes of the volumes on the node's disk. The requests of memory and
disk are also limits. CPU has a limit only if cpuLimit is set.
*/}}
{{- define "chatrpc.resources" -}}
{{- $resources := first . }}
{{- $mebibytes := 512 }}
{{- range last . }}
{{- $mebibytes = add $mebibytes (ceil (divf (include "chatrpc.bytes" . | float64) 1048576)) }}
{{- end }}
{{- $disk := default (printf "%dMi" (int64 $mebibytes)) $resources.ephemeralStorage }}
requests:
  cpu: {{ $resources.cpu | quote }}
  memory: {{ $resources.memory | quote }}
  ephemeral-storage: {{ $disk | quote }}
limits:
  {{- with $resources.cpuLimit }}
  cpu: {{ . | quote }}
  {{- end }}
  memory: {{ $resources.memory | quote }}
  ephemeral-storage: {{ $disk | quote }}
{{- end }}

{{/* Takes (list root port): annotations for a Prometheus that discovers pods by them. */}}
{{- define "chatrpc.scrapeAnnotations" -}}
{{- if (first .).Values.monitoring.annotations }}
prometheus.io/scrape: "true"
prometheus.io/port: {{ last . | quote }}
prometheus.io/path: /metrics
{{- end }}
{{- end }}

{{/* Takes (dict name secret items): a volume with some keys of a Secret, readable only by the process. */}}
{{- define "chatrpc.secretVolume" -}}
- name: {{ .name }}
  secret:
    secretName: {{ .secret }}
    defaultMode: 0440
    items:
      {{- range $key, $path := .items }}
      - key: {{ $key | quote }}
        path: {{ $path | quote }}
      {{- end }}
{{- end }}

{{- define "chatrpc.mount" -}}
- name: {{ . }}
  mountPath: /etc/chatrpc/{{ . }}
  readOnly: true
{{- end }}
