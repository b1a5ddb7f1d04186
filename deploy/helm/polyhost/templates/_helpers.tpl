{{- define "polyhost.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "polyhost.labels" -}}
app.kubernetes.io/name: polyhost
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* What the servers' pods are chosen by, and HAProxy's. */ -}}
{{- define "polyhost.selector" -}}
app.kubernetes.io/name: polyhost
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end }}

{{- define "polyhost.routerSelector" -}}
app.kubernetes.io/name: polyhost
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: router
{{- end }}

{{- /* How many servers there may be. */ -}}
{{- define "polyhost.most" -}}
{{- if .Values.autoscaling.enabled }}{{ max (int .Values.replicas) (int .Values.autoscaling.maxReplicas) }}{{ else }}{{ int .Values.replicas }}{{ end }}
{{- end }}

{{- define "polyhost.resources" -}}
requests: {cpu: {{ .cpu | quote }}, memory: {{ .memory }}}
limits: {memory: {{ .memory }}}
{{- end }}
