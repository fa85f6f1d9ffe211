{{/* What every pod has; takes (list root values labels), values being those of the component. */}}
{{- define "chatrpc.pod.spec" -}}
{{- $root := index . 0 }}
{{- $own := index . 1 }}
{{- $selector := index . 2 -}}
serviceAccountName: {{ include "chatrpc.serviceAccountName" $root }}
automountServiceAccountToken: false
# Off: the links of a Service named after this chart would be environment variables of our settings.
enableServiceLinks: false
securityContext:
  {{- toYaml $root.Values.podSecurityContext | nindent 2 }}
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
topologySpreadConstraints:
{{- with $own.topologySpreadConstraints }}
  {{- toYaml . | nindent 2 }}
{{- else }}
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

{{/* Seconds from the first notice to the last: sleep, delay, what may still run, and some to leave. */}}
{{- define "chatrpc.gracePeriod" -}}
{{- add (ceil .preStopSeconds) (ceil .delaySeconds) (ceil .timeoutSeconds) 10 }}
{{- end }}

{{/* Takes (list root drain). */}}
{{- define "chatrpc.lifecycle" -}}
{{- $root := first . }}
{{- $seconds := (last .).preStopSeconds }}
{{- if gt (int $seconds) 0 }}
{{- if semverCompare "<1.30.0-0" $root.Capabilities.KubeVersion.Version }}
{{- fail "drain.preStopSeconds needs Kubernetes 1.30; drain.delaySeconds does the same on any." }}
{{- end }}
lifecycle:
  preStop:
    sleep:
      seconds: {{ int $seconds }}
{{- end }}
{{- end }}

{{/* Memory is not shared: what was asked for is what there is. CPU may be had beyond, if nobody else wants it. */}}
{{- define "chatrpc.resources" -}}
requests:
  cpu: {{ .cpu | quote }}
  memory: {{ .memory | quote }}
  {{- with .ephemeralStorage }}
  ephemeral-storage: {{ . | quote }}
  {{- end }}
limits:
  {{- with .cpuLimit }}
  cpu: {{ . | quote }}
  {{- end }}
  memory: {{ .memory | quote }}
  {{- with .ephemeralStorage }}
  ephemeral-storage: {{ . | quote }}
  {{- end }}
{{- end }}

{{/* Takes (list root port): annotations for Prometheuses that look for them. */}}
{{- define "chatrpc.scrapeAnnotations" -}}
{{- if (first .).Values.monitoring.annotations }}
prometheus.io/scrape: "true"
prometheus.io/port: {{ last . | quote }}
prometheus.io/path: /metrics
{{- end }}
{{- end }}

{{/* Takes (dict name secret items): a volume of some of a Secret's keys, readable by the process alone. */}}
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
