{{- define "chatrpc.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 32 | trimSuffix "-" }}
{{- end }}

{{- define "chatrpc.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) }}
{{- default $full .Values.fullnameOverride | trunc 32 | trimSuffix "-" }}
{{- end }}

{{/* Takes (list root model): the name of a model's Deployment, Service and other objects. */}}
{{- define "chatrpc.model.fullname" -}}
{{- printf "%s-%s" (include "chatrpc.fullname" (first .)) (include "chatrpc.model.resourceName" (last .)) }}
{{- end }}

{{/*
Takes a model: its name as a part of a DNS label, of 30 characters at most. A longer name keeps its beginning and gets
a hash, so that two of them differ.
*/}}
{{- define "chatrpc.model.resourceName" -}}
{{- $label := regexReplaceAll "[^a-z0-9]+" (lower .name) "-" }}
{{- if gt (len $label) 30 }}
{{- $label = printf "%s-%s" (trunc 21 $label | trimSuffix "-") (sha256sum .name | trunc 8) }}
{{- end }}
{{- default $label .resourceName }}
{{- end }}

{{- define "chatrpc.gateway.fullname" -}}
{{- printf "%s-gateway" (include "chatrpc.fullname" .) }}
{{- end }}

{{- define "chatrpc.serviceAccountName" -}}
{{- $made := ternary (include "chatrpc.fullname" .) "default" .Values.serviceAccount.create }}
{{- default $made .Values.serviceAccount.name }}
{{- end }}

{{/* Takes (list root image): repository and tag. A digest follows an @. */}}
{{- define "chatrpc.image" -}}
{{- $root := first . }}
{{- $tag := coalesce (last .).tag $root.Values.image.tag $root.Chart.AppVersion | toString }}
{{- $separator := ternary "@" ":" (hasPrefix "sha256:" $tag) }}
{{- with $root.Values.image.registry }}{{ trimSuffix "/" . }}/{{ end }}{{ (last .).repository }}{{ $separator }}{{ $tag }}
{{- end }}

{{/* Takes (list root component): component is gateway, or the name of a model. */}}
{{- define "chatrpc.selectorLabels" -}}
{{- $root := first . -}}
app.kubernetes.io/name: {{ include "chatrpc.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
{{- if eq (last .) "gateway" }}
app.kubernetes.io/component: gateway
{{- else }}
app.kubernetes.io/component: service
chatrpc/model: {{ last . | quote }}
{{- end }}
{{- end }}

{{/* Takes (list root name): the labels of all pods of a model, with the workers of groups. */}}
{{- define "chatrpc.modelLabels" -}}
{{- $root := first . -}}
app.kubernetes.io/name: {{ include "chatrpc.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
chatrpc/model: {{ last . | quote }}
{{- end }}

{{- define "chatrpc.labels" -}}
{{- $root := first . -}}
{{ include "chatrpc.selectorLabels" . }}
{{ include "chatrpc.commonLabels" $root }}
{{- end }}

{{- define "chatrpc.commonLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Labels of objects that belong to no component. */}}
{{- define "chatrpc.releaseLabels" -}}
app.kubernetes.io/name: {{ include "chatrpc.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{ include "chatrpc.commonLabels" . }}
{{- end }}

{{/* Takes (list root annotations). */}}
{{- define "chatrpc.annotations" -}}
{{- with merge (dict) (last .) (first .).Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
