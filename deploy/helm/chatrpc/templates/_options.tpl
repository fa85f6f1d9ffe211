{{/*
The command lines of the processes. They contain paths of files with secrets, never secrets.
*/}}

{{- define "chatrpc.grpcPort" -}}50051{{- end }}
{{- define "chatrpc.adminPort" -}}50052{{- end }}
{{- define "chatrpc.metricsPort" -}}9090{{- end }}
{{- define "chatrpc.httpPort" -}}8000{{- end }}
{{- define "chatrpc.gatewayAdminPort" -}}8001{{- end }}

{{/* A number in the format of options: integers without the exponent that Go would write. */}}
{{- define "chatrpc.number" -}}
{{- if eq (float64 .) (floor .) }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- end }}

{{/* A map of options by name, as arguments. */}}
{{- define "chatrpc.options" -}}
{{- range $name, $value := . }}
{{- if kindIs "bool" $value }}
- {{ printf "--%s%s" (ternary "" "no-" $value) $name | quote }}
{{- else if kindIs "slice" $value }}
- {{ printf "--%s=%s" $name (join "," $value) | quote }}
{{- else if or (kindIs "float64" $value) (kindIs "int64" $value) (kindIs "int" $value) }}
- {{ printf "--%s=%s" $name (include "chatrpc.number" $value) | quote }}
{{- else }}
- {{ printf "--%s=%s" $name $value | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* Takes (list root model). */}}
{{- define "chatrpc.service.args" -}}
{{- $root := first . }}
{{- $model := last . }}
{{- $values := $root.Values }}
{{- if ne $model.engine "openai" }}
- {{ printf "--model=%s" (required (printf "models: %s: model is missing" $model.name) $model.model) | quote }}
{{- end }}
- {{ printf "--served-model-name=%s" (default $model.name $model.servedName) | quote }}
{{- with $model.aliases }}
- {{ printf "--model-aliases=%s" (join "," .) | quote }}
{{- end }}
- {{ printf "--engine=%s" $model.engine | quote }}
- {{ printf "--host=%s" $values.listen | quote }}
- --port={{ include "chatrpc.grpcPort" $root }}
- {{ printf "--admin-host=%s" $values.listen | quote }}
- --admin-port={{ include "chatrpc.adminPort" $root }}
- --metrics-port={{ include "chatrpc.metricsPort" $root }}
- --drain-delay-s={{ include "chatrpc.number" $model.drain.delaySeconds }}
- --drain-timeout-s={{ include "chatrpc.number" $model.drain.timeoutSeconds }}
{{- if has $model.storage.kind (list "emptyDir" "pvc") }}
- {{ printf "--cache-dir=%s/cache" $model.storage.mountPath | quote }}
{{- else if hasSuffix ".gguf" $model.model }}
{{- /* Its config and tokenizer are written at each start, because the image's directory is read-only. */}}
- --cache-dir=/tmp/cache
{{- end }}
{{- if ne $model.prefixCache.kind "none" }}
- {{ printf "--prefix-cache-dir=%s" (include "chatrpc.prefixCache.path" $) | quote }}
- --prefix-cache-disk-bytes={{ include "chatrpc.bytes" $model.prefixCache.size | float64 | mulf 0.9 | int64 }}
{{- end }}
{{- if eq $model.engine "vllm" }}
{{- with include "chatrpc.vllm.args" (list $model 0) | fromJson }}
- {{ printf "--vllm-args=%s" (toJson .) | quote }}
{{- end }}
{{- else if eq $model.engine "openai" }}
{{- include "chatrpc.upstream.args" $model }}
{{- else if gt (int $model.gpu.count) 0 }}
- --device=cuda
{{- else }}
- --device=cpu
{{- if not (hasKey $model.options "num-threads") }}
- --num-threads={{ include "chatrpc.wholeCpus" $model.resources.cpu }}
{{- end }}
{{- end }}
{{- with $values.access.serviceKeys.secret }}
- --api-keys=/etc/chatrpc/keys/keys.toml
{{- end }}
{{- with $values.tls.grpc.secret }}
- --tls-certificate=/etc/chatrpc/tls/tls.crt
- --tls-key=/etc/chatrpc/tls/tls.key
{{- if $values.tls.grpc.clientSecret }}
- --tls-client-ca=/etc/chatrpc/tls/ca.crt
{{- end }}
{{- end }}
{{- if not (or $values.access.serviceKeys.secret $values.tls.grpc.clientSecret) }}
{{- if not (or $values.networkPolicy.enabled $values.access.insecure) }}
{{- fail "Every client in the cluster could use the services: set networkPolicy.enabled, access.serviceKeys.secret or tls.grpc.clientSecret, or set access.insecure to true." }}
{{- end }}
- --insecure
{{- end }}
{{- with $values.monitoring.otlpEndpoint }}
- {{ printf "--otlp-endpoint=%s" . | quote }}
{{- end }}
{{- include "chatrpc.options" $model.options }}
{{- end }}

{{/* Takes a model with the engine openai. */}}
{{- define "chatrpc.upstream.args" -}}
{{- with .upstream }}
- {{ printf "--upstream-url=%s" (join "," .urls) | quote }}
- --upstream-dialect={{ .dialect }}
{{- if .model }}
- {{ printf "--upstream-model=%s" .model | quote }}
{{- end }}
{{- if .apiKey.secret }}
- --upstream-api-key-file=/etc/chatrpc/upstream-key/api-key
{{- end }}
{{- if .caSecret }}
- --upstream-ca=/etc/chatrpc/upstream-ca/ca.crt
{{- end }}
{{- if .clientSecret }}
- --upstream-certificate=/etc/chatrpc/upstream-tls/tls.crt
- --upstream-key=/etc/chatrpc/upstream-tls/tls.key
{{- end }}
{{- end }}
{{- end }}

{{/*
Takes (list model rank): vLLM's arguments of a node as JSON. The kubelet replaces $(LWS_LEADER_ADDRESS), which the
controller of groups sets.
*/}}
{{- define "chatrpc.vllm.args" -}}
{{- $model := first . }}
{{- $args := deepCopy $model.vllm.args }}
{{- if eq (include "chatrpc.model.isGroup" $model) "true" }}
{{- $args = merge (dict "nnodes" (int $model.vllm.nodes) "node_rank" (last .) "master_addr" "$(LWS_LEADER_ADDRESS)") $args }}
{{- end }}
{{- toJson $args }}
{{- end }}

{{/* Takes (list root model): the arguments of `vllm serve` on a node that is not the first of its group. */}}
{{- define "chatrpc.worker.args" -}}
{{- $model := last . }}
- {{ $model.model | quote }}
- --headless
- --node-rank=$(LWS_WORKER_INDEX)
{{- range $name, $value := include "chatrpc.vllm.args" (list $model 0) | fromJson }}
{{- if ne $name "node_rank" }}
{{- if kindIs "bool" $value }}
- --{{ ternary "" "no-" $value }}{{ replace "_" "-" $name }}
{{- else }}
- {{ printf "--%s=%s" (replace "_" "-" $name) (ternary $value (toJson $value) (kindIs "string" $value)) | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "chatrpc.gateway.args" -}}
{{- $gateway := .Values.gateway }}
- --registry=/etc/chatrpc/registry/registry.toml
- {{ printf "--host=%s" .Values.listen | quote }}
- --port={{ include "chatrpc.httpPort" . }}
- {{ printf "--admin-host=%s" .Values.listen | quote }}
- --admin-port={{ include "chatrpc.gatewayAdminPort" . }}
- --drain-delay-s={{ include "chatrpc.number" $gateway.drain.delaySeconds }}
- --drain-timeout-s={{ include "chatrpc.number" $gateway.drain.timeoutSeconds }}
{{- if .Values.access.gatewayKeys.secret }}
- --api-keys=/etc/chatrpc/keys/keys.toml
{{- end }}
{{- if .Values.tls.gateway.secret }}
- --tls-certificate=/etc/chatrpc/tls/tls.crt
- --tls-key=/etc/chatrpc/tls/tls.key
{{- if .Values.tls.gateway.clientCertificates }}
- --tls-client-ca=/etc/chatrpc/tls/ca.crt
{{- end }}
{{- end }}
{{- if not (or .Values.access.gatewayKeys.secret (and .Values.tls.gateway.secret .Values.tls.gateway.clientCertificates)) }}
{{- if not .Values.access.insecure }}
{{- fail "Every client that reaches the gateway could use it: set access.gatewayKeys.secret, or tls.gateway.secret and tls.gateway.clientCertificates, or set access.insecure to true." }}
{{- end }}
- --insecure
{{- end }}
{{- with .Values.monitoring.otlpEndpoint }}
- {{ printf "--otlp-endpoint=%s" . | quote }}
{{- end }}
{{- include "chatrpc.options" $gateway.options }}
{{- end }}

{{/* A quantity of CPUs, rounded up: 1500m is 2. */}}
{{- define "chatrpc.wholeCpus" -}}
{{- $text := toString . }}
{{- if hasSuffix "m" $text }}
{{- ceil (divf (trimSuffix "m" $text | float64) 1000.0) | int }}
{{- else }}
{{- ceil (float64 $text) | int }}
{{- end }}
{{- end }}

{{/* Takes (list root model): the model's entry in the gateway's registry. JSON strings are valid TOML strings. */}}
{{- define "chatrpc.registry.entry" -}}
{{- $root := first . }}
{{- $model := last . -}}
[[model]]
name = {{ default $model.name $model.servedName | toJson }}
aliases = {{ $model.aliases | toJson }}
target = {{ printf "dns:///%s.%s.svc:%s" (include "chatrpc.model.fullname" .) $root.Release.Namespace (include "chatrpc.grpcPort" $root) | toJson }}
balance = {{ $model.routing.balance | toJson }}
{{- with $model.routing.affinity }}
affinity = {{ . | toJson }}
{{- end }}
{{- with $model.routing.prefixChars }}
prefix_chars = {{ include "chatrpc.number" . }}
{{- end }}
{{- if $root.Values.tls.grpc.secret }}
ca = "/etc/chatrpc/upstream-tls/ca.crt"
{{- if $root.Values.tls.grpc.clientSecret }}
certificate = "/etc/chatrpc/upstream-client-tls/tls.crt"
key = "/etc/chatrpc/upstream-client-tls/tls.key"
{{- end }}
{{- end }}
{{- if $root.Values.access.upstreamKey.secret }}
api_key_file = "/etc/chatrpc/upstream-key/api-key"
{{- end }}
{{- end }}
