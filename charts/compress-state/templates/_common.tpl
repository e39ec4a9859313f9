{{- /* Labels by which a component's pods are found. Takes {root, name: context's name, component}. */ -}}
{{- define "common.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- /* Labels of an object. Takes {root, component}. */ -}}
{{- define "common.labels" -}}
{{ include "common.selector" . }}
app.kubernetes.io/part-of: matrix-stack
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* An object's metadata. Takes {root, name, component} and, where there are any, annotations. */ -}}
{{- define "common.metadata" -}}
name: {{ .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "common.labels" . | nindent 2 }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* What a hook is to Helm and to Argo CD. Takes a weight. */ -}}
{{- define "common.hook" -}}
helm.sh/hook: pre-install,pre-upgrade
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
argocd.argoproj.io/hook: PreSync
argocd.argoproj.io/hook-delete-policy: BeforeHookCreation,HookSucceeded
argocd.argoproj.io/sync-wave: {{ . | quote }}
{{- end -}}

{{- /* An image's name. Takes {image, tag: the one that an empty tag stands for}. */ -}}
{{- define "common.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ default .tag .image.tag }}
{{- end -}}
{{- end -}}

{{- define "common.image.synapse" -}}
image: {{ include "common.image" (dict "image" .Values.images.synapse "tag" (printf "v%s" .Chart.AppVersion)) | quote }}
imagePullPolicy: {{ .Values.images.synapse.pullPolicy }}
{{- end -}}

{{- define "common.image.matrixStack" -}}
image: {{ include "common.image" (dict "image" .Values.images.matrixStack "tag" .Chart.Version) | quote }}
imagePullPolicy: {{ .Values.images.matrixStack.pullPolicy }}
{{- end -}}

{{- /* A component's settings above those of all pods, as JSON. Takes {root, pod}. */ -}}
{{- define "common.pod" -}}
{{- mergeOverwrite (deepCopy .root.Values.pods) (default dict .pod) | toJson -}}
{{- end -}}

{{- /* The metadata of a component's pods. Takes {root, component, kind, pod: its settings} and annotations. */ -}}
{{- define "common.pod.metadata" -}}
labels:
  {{- /* Without the versions: a new chart alone restarts nothing. */}}
  {{- include "common.selector" . | nindent 2 }}
  app.kubernetes.io/part-of: matrix-stack
  app.kubernetes.io/managed-by: {{ .root.Release.Service }}
  matrix-stack.io/kind: {{ .kind }}
  {{- with .group }}
  matrix-stack.io/group: {{ . }}
  {{- end }}
  {{- with .root.Values.labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- with .pod.labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (default dict .annotations) .pod.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* What the pods of all components have in common. Takes {root, component, account, pod, many: whether there are several,
      grace: seconds}. */ -}}
{{- define "common.pod.spec" -}}
{{- $pod := .pod -}}
serviceAccountName: {{ ternary .account "default" .root.Values.serviceAccounts.create }}
automountServiceAccountToken: {{ default false .token }}
enableServiceLinks: false
terminationGracePeriodSeconds: {{ default .grace $pod.terminationGracePeriodSeconds | int }}
{{- with .root.Values.images.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml $pod.securityContext | nindent 2 }}
{{- range $field := list "nodeSelector" "tolerations" "affinity" "priorityClassName" "runtimeClassName" "schedulerName" "hostAliases" "dnsConfig" }}
{{- with get $pod $field }}
{{- dict $field . | toYaml | nindent 0 }}
{{- end }}
{{- end }}
{{- $spread := $pod.topologySpreadConstraints }}
{{- if and .many (kindIs "invalid" $spread) }}
{{- $spread = list (dict "maxSkew" 1 "topologyKey" "kubernetes.io/hostname" "whenUnsatisfiable" "ScheduleAnyway") }}
{{- end }}
{{- with $spread }}
topologySpreadConstraints:
  {{- range . }}
  - {{- toYaml . | nindent 4 }}
    labelSelector:
      matchLabels:
        {{- include "common.selector" $ | nindent 8 }}
  {{- end }}
{{- end }}
{{- end -}}

{{- /* A probe: the first's fields, above them the second's. */ -}}
{{- define "common.probe" -}}
{{- toYaml (mergeOverwrite (deepCopy (index . 0)) (index . 1)) -}}
{{- end -}}

{{- /* The environment of a main container: people's own, then the chart's. Takes {pod, env: a list}. */ -}}
{{- define "common.env" -}}
{{- $names := list -}}
{{- range .env }}{{ $names = append $names .name }}{{ end -}}
{{- range .pod.extraEnv -}}
{{- if has .name $names }}{{ fail (printf "extraEnv: %s is set by the chart; leave it away" .name) }}{{ end -}}
{{- end -}}
{{- with concat .pod.extraEnv .env }}
env:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* The volume of all secrets, one file each. Takes the context. */ -}}
{{- define "common.secrets.volume" -}}
name: secrets
projected:
  # With the pods' fsGroup: readable for the process, and for nobody else.
  defaultMode: 0440
  sources:
    {{- range .credentials }}
    - secret:
        name: {{ .secret }}
        items:
          - key: {{ .key }}
            path: {{ .field }}
    {{- end }}
{{- end -}}

{{- /* The address family of a Service. Takes the root. */ -}}
{{- define "common.service.families" -}}
{{- with .Values.services.ipFamilyPolicy }}
ipFamilyPolicy: {{ . }}
{{- end }}
{{- with .Values.services.ipFamilies }}
ipFamilies:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
