{{- /*
What all templates need, worked out once: as JSON, to be read with fromJson. What is wrong with the values is said here,
all at once.
*/ -}}
{{- define "companion.context" -}}
{{- $v := .Values -}}
{{- $problems := list -}}
{{- $facts := .Files.Get "files/facts.json" | fromJson -}}
{{- $name := $v.fullnameOverride -}}
{{- if not $name -}}
{{- $name = ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) -}}
{{- end -}}
{{- if gt (len $name) 52 -}}
{{- $problems = append $problems (printf "`%s`, which the names of all objects begin with, is longer than 52 characters; set fullnameOverride to something shorter" $name) -}}
{{- end -}}

{{- /* Credentials: a file for each, which the settings name. */ -}}
{{- $settings := deepCopy $v.settings -}}
{{- $said := toJson $settings -}}
{{- $credentials := list -}}
{{- $own := dict -}}
{{- range $field, $value := $v.secrets -}}
{{- if $value.secret -}}
{{- $credentials = append $credentials (dict "field" $field "secret" $value.secret "key" $value.key) -}}
{{- else if $value.value -}}
{{- $_ := set $own $field $value.value -}}
{{- $credentials = append $credentials (dict "field" $field "secret" (printf "%s-credentials" $name) "key" $field) -}}
{{- else -}}
{{- $problems = append $problems (printf "secrets.%s: give it as {value: ...} or {secret: ..., key: ...}" $field) -}}
{{- end -}}
{{- if not (or $facts.environment (contains (printf "\"/secrets/%s\"" $field) $said)) -}}
{{- $problems = append $problems (printf "secrets.%s: no setting names its file, /secrets/%s; name it, or leave the secret away" $field $field) -}}
{{- end -}}
{{- end -}}
{{- range regexFindAll "\"/secrets/[^\"]*\"" $said -1 | uniq -}}
{{- $field := . | trimAll "\"" | trimPrefix "/secrets/" -}}
{{- if not (hasKey $v.secrets $field) -}}
{{- $problems = append $problems (printf "settings: there is no secrets.%s for the file /secrets/%s; give it as {value: ...} or {secret: ..., key: ...}" $field $field) -}}
{{- end -}}
{{- end -}}

{{- /* Where it listens, and keeps what has to last. */ -}}
{{- $any := ternary "[::]" "0.0.0.0" (has "IPv6" (default list (default dict $v.services).ipFamilies)) -}}
{{- range $made := $facts.settings -}}
{{- $there := true -}}
{{- if .when -}}
{{- $at := $settings -}}
{{- range splitList "." .when -}}
{{- if and $there (kindIs "map" $at) (hasKey $at .) }}{{ $at = get $at . }}{{ else }}{{ $there = false }}{{ end -}}
{{- end -}}
{{- end -}}
{{- if $there -}}
{{- $keys := splitList "." .path -}}
{{- $at := $settings -}}
{{- range initial $keys -}}
{{- if not (get $at .) }}{{ $_ := set $at . dict }}{{ end -}}
{{- $at = get $at . -}}
{{- end -}}
{{- $_ := set $at (last $keys) (.value | replace "ANY" $any) -}}
{{- end -}}
{{- end -}}
{{- if and $facts.environment (not (hasKey $v.secrets "password")) -}}
{{- $problems = append $problems "secrets.password: give it as {value: ...} or {secret: ..., key: ...}" -}}
{{- end -}}
{{- if and $v.httpRoute (default dict $v.httpRoute).enabled (not $v.httpRoute.parentRefs) -}}
{{- $problems = append $problems "httpRoute.parentRefs: name the Gateway" -}}
{{- end -}}
{{- if and $v.ingress (default dict $v.ingress).enabled (not $v.ingress.host) -}}
{{- $problems = append $problems "ingress.host: name the host" -}}
{{- end -}}
{{- if and $v.httpRoute (default dict $v.httpRoute).enabled (not $v.httpRoute.hostnames) -}}
{{- $problems = append $problems "httpRoute.hostnames: name the hosts" -}}
{{- end -}}
{{- $scaling := default dict $v.autoscaling -}}
{{- if and $scaling.by (le (int $scaling.maxReplicas) (int $v.replicas)) -}}
{{- $problems = append $problems "autoscaling.maxReplicas: set it above replicas" -}}
{{- end -}}
{{- if $problems -}}
{{- fail (printf "\n\nThe values of `%s` cannot be installed:\n  * %s\n" .Release.Name (join "\n  * " $problems)) -}}
{{- end -}}
{{- $many := ternary (int (default 1 $scaling.maxReplicas)) (int (default 1 $v.replicas)) (not (not $scaling.by)) -}}
{{- dict "name" $name "facts" $facts "settings" $settings "credentials" $credentials "own" $own "many" (gt $many 1)
      "restart" (dict "checksum/settings" (toJson $settings | sha256sum) "checksum/credentials" (toJson $own | sha256sum)) | toJson -}}
{{- end -}}

{{- /* The pod of the service. Takes {root, context, pod, restart: its restart policy}. */ -}}
{{- define "companion.pod" -}}
{{- $c := .context -}}{{- $pod := .pod -}}{{- $root := .root -}}
{{- $labels := dict "root" $root "component" $c.facts.service "name" $c.name -}}
{{- $env := list -}}
{{- range $c.facts.environment -}}
{{- $value := get $c.settings .setting -}}
{{- if $value }}{{ $env = append $env (dict "name" .name "value" (toString $value)) }}{{ end -}}
{{- end -}}
{{- if $c.facts.environment -}}
{{- range $c.credentials -}}
{{- if eq .field "password" -}}
{{- $env = append $env (dict "name" "PGPASSWORD" "valueFrom" (dict "secretKeyRef" (dict "name" .secret "key" .key))) -}}
{{- end -}}
{{- end -}}
{{- end -}}
metadata:
  {{- include "common.pod.metadata" (merge (dict "kind" $c.facts.service "pod" $pod "annotations" (ternary dict $c.restart (eq .restart "Never"))) $labels) | nindent 2 }}
spec:
  {{- include "common.pod.spec" (merge (dict "account" $c.name "pod" $pod "many" $c.many "grace" 60) $labels) | nindent 2 }}
  {{- if eq .restart "Never" }}
  restartPolicy: Never
  {{- end }}
  {{- with $pod.extraInitContainers }}
  initContainers:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: {{ $c.facts.service }}
      {{- include "common.image.matrixStack" $root | nindent 6 }}
      args:
        {{- toYaml $c.facts.args | nindent 8 }}
        {{- with $root.Values.extraArgs }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- include "common.env" (dict "pod" $pod "env" $env) | nindent 6 }}
      {{- with $c.facts.ports }}
      ports:
        {{- range . }}
        - name: {{ .name }}
          containerPort: {{ .port | int }}
        {{- end }}
      {{- end }}
      {{- if $c.facts.metrics }}
      startupProbe:
        {{- include "common.probe" (list (dict "httpGet" (dict "path" "/health" "port" "metrics") "periodSeconds" 1 "failureThreshold" 60) $pod.startupProbe) | nindent 8 }}
      readinessProbe:
        {{- include "common.probe" (list (dict "httpGet" (dict "path" "/ready" "port" "metrics") "periodSeconds" 5 "timeoutSeconds" 2 "failureThreshold" 2) $pod.readinessProbe) | nindent 8 }}
      livenessProbe:
        {{- include "common.probe" (list (dict "httpGet" (dict "path" "/health" "port" "metrics") "periodSeconds" 20 "timeoutSeconds" 5 "failureThreshold" 3) $pod.livenessProbe) | nindent 8 }}
      # Whoever sends requests needs a moment to hear that this one goes; those under way are then let finish.
      lifecycle:
        preStop:
          sleep:
            seconds: 5
      {{- end }}
      securityContext:
        {{- toYaml $pod.containerSecurityContext | nindent 8 }}
      resources:
        {{- toYaml $pod.resources | nindent 8 }}
      {{- if or (not $c.facts.environment) $pod.extraVolumeMounts }}
      volumeMounts:
        {{- if not $c.facts.environment }}
        - name: settings
          mountPath: /etc/matrix-stack
          readOnly: true
        {{- if $c.credentials }}
        - name: secrets
          mountPath: /secrets
          readOnly: true
        {{- end }}
        {{- end }}
        {{- if $c.facts.data }}
        - name: data
          mountPath: /data
        {{- end }}
        {{- with $pod.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- end }}
    {{- with $pod.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- if or (not $c.facts.environment) $pod.extraVolumes }}
  volumes:
    {{- if not $c.facts.environment }}
    - name: settings
      configMap:
        name: {{ $c.name }}-settings
    {{- if $c.credentials }}
    - {{- include "common.secrets.volume" $c | nindent 6 }}
    {{- end }}
    {{- end }}
    {{- if and $c.facts.data (not $root.Values.persistence.enabled) }}
    - name: data
      emptyDir: {}
    {{- else if and $c.facts.data $root.Values.persistence.existingClaim }}
    - name: data
      persistentVolumeClaim:
        claimName: {{ $root.Values.persistence.existingClaim }}
    {{- end }}
    {{- with $pod.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
{{- end -}}
