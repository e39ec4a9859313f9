{{- /*
What all templates need, worked out once: as JSON, to be read with fromJson. What is wrong with the values is said here,
all at once.
*/ -}}
{{- define "synapse.context" -}}
{{- $v := .Values -}}
{{- $problems := list -}}
{{- $facts := .Files.Get "files/facts.json" | fromJson -}}
{{- $name := $v.fullnameOverride -}}
{{- if not $name -}}
{{- $name = ternary .Release.Name (printf "%s-synapse" .Release.Name) (contains "synapse" .Release.Name) -}}
{{- end -}}
{{- $domain := printf "%s.svc.%s" .Release.Namespace $v.clusterDomain -}}

{{- /* Groups: the preset's, changed and added to by the stack's. */ -}}
{{- $stack := deepCopy $v.stack -}}
{{- $preset := default "small" $stack.preset -}}
{{- $workers := default dict $stack.workers -}}
{{- $wanted := list -}}
{{- range get $facts.presets $preset -}}
{{- $wanted = append $wanted (dict "name" .name "roles" .roles "count" .count) -}}
{{- end -}}
{{- range $group, $_ := $workers -}}
{{- $known := false -}}
{{- range $wanted }}{{ if eq .name $group }}{{ $known = true }}{{ end }}{{ end -}}
{{- if not $known -}}
{{- $wanted = append $wanted (dict "name" $group "roles" (ternary (list $group) list (hasKey $facts.roles $group)) "count" 1) -}}
{{- end -}}
{{- end -}}
{{- $groups := list -}}
{{- $carried := dict -}}
{{- range $wanted -}}
{{- $own := default dict (get $workers .name) -}}
{{- $count := .count -}}
{{- if hasKey $own "count" }}{{ $count = $own.count }}{{ end -}}
{{- if gt (int $count) 0 -}}
{{- $roles := default .roles $own.roles -}}
{{- range $roles }}{{ $_ := set $carried . true }}{{ end -}}
{{- $groups = append $groups (dict
      "name" .name "object" (printf "%s-%s" $name (.name | replace "_" "-")) "component" (.name | replace "_" "-")
      "roles" $roles "count" (int $count) "maxCount" (int (default $count $own.max_count))
      "settings" (default dict (get $v.groups .name)) "pod" (default dict (default dict (get $v.groups .name)).pod)) -}}
{{- end -}}
{{- end -}}
{{- $mediaProcesses := 0 -}}
{{- range $group := $groups -}}
{{- $elastic := true -}}{{- $http := false -}}{{- $media := false -}}
{{- range .roles -}}
{{- $fact := default dict (get $facts.roles .) -}}
{{- if not $fact.elastic }}{{ $elastic = false }}{{ end -}}
{{- range $fact.elastic_beside }}{{ if not (hasKey $carried .) }}{{ $elastic = false }}{{ end }}{{ end -}}
{{- if $fact.http }}{{ $http = true }}{{ end -}}
{{- if $fact.media }}{{ $media = true }}{{ end -}}
{{- if and (not $fact.scalable) (gt $group.count 1) -}}
{{- $problems = append $problems (printf "stack.workers.%s.count: there can be only one process with the role `%s`" $group.name .) -}}
{{- end -}}
{{- end -}}
{{- if and (not $elastic) (gt .maxCount .count) -}}
{{- $problems = append $problems (printf "stack.workers.%s.max_count: this group is not scaled at run time, because its processes are known by name; leave it away" .name) -}}
{{- end -}}
{{- $scaling := default dict .settings.autoscaling -}}
{{- if $scaling.by -}}
{{- if not $elastic -}}
{{- $problems = append $problems (printf "groups.%s.autoscaling: this group is not scaled at run time, because its processes are known by name" .name) -}}
{{- else if le .maxCount .count -}}
{{- $problems = append $problems (printf "groups.%s.autoscaling: set stack.workers.%s.max_count above its count" .name .name) -}}
{{- end -}}
{{- end -}}
{{- $_ := set . "elastic" $elastic -}}{{- $_ := set . "http" $http -}}{{- $_ := set . "media" $media -}}
{{- $_ := set . "kind" (ternary "Deployment" "StatefulSet" $elastic) -}}
{{- $_ := set . "resources" $facts.resources.worker -}}
{{- /* A media process is this program of Synapse's, any other that one. */ -}}
{{- $_ := set . "module" (ternary "synapse.app.media_repository" "synapse.app.generic_worker" $media) -}}
{{- $_ := set . "instance" (ternary .name (printf "%s_$(POD_INDEX)" .name) $elastic) -}}
{{- if $media }}{{ $mediaProcesses = add $mediaProcesses .maxCount }}{{ end -}}
{{- if has .component (list "router" "valkey" "pgbouncer" "postgres" "processes" "rollout") -}}
{{- $problems = append $problems (printf "stack.workers.%s: the chart has something else of this name; choose another" .name) -}}
{{- end -}}
{{- if gt (len .object) 52 -}}
{{- $problems = append $problems (printf "`%s`, the name of the group %s, is longer than 52 characters; set fullnameOverride to something shorter" .object .name) -}}
{{- end -}}
{{- end -}}
{{- if gt (len $name) 46 -}}
{{- $problems = append $problems (printf "`%s`, which the names of all objects begin with, is longer than 46 characters; set fullnameOverride to something shorter" $name) -}}
{{- end -}}
{{- range $group, $_ := $v.groups -}}
{{- $known := false -}}
{{- range $groups }}{{ if eq .name $group }}{{ $known = true }}{{ end }}{{ end -}}
{{- if not $known -}}
{{- $problems = append $problems (printf "groups.%s: the stack has no such group; add it to stack.workers, or choose a preset that has it" $group) -}}
{{- end -}}
{{- end -}}
{{- $main := dict "name" "main" "object" (printf "%s-main" $name) "component" "main" "count" 1 "maxCount" 1 "elastic" false "http" true
      "media" (eq (int $mediaProcesses) 0) "kind" "StatefulSet" "module" "synapse.app.homeserver" "instance" "main"
      "pod" (default dict $v.main.pod) "resources" $facts.resources.main -}}
{{- if $main.media }}{{ $mediaProcesses = 1 }}{{ end -}}

{{- /* What is missing. */ -}}
{{- if not $stack.server_name -}}
{{- $problems = append $problems "stack.server_name: set the domain of user IDs, such as example.org" -}}
{{- end -}}
{{- $database := default dict (default dict $stack.database).external -}}
{{- if and $v.cloudNativePg.enabled $database.host -}}
{{- $problems = append $problems "cloudNativePg.enabled: there is stack.database.external.host already; leave one of them away" -}}
{{- else if not (or $v.cloudNativePg.enabled $database.host) -}}
{{- $problems = append $problems "stack.database.external.host: set the host of your PostgreSQL server, or cloudNativePg.enabled where its operator is installed" -}}
{{- end -}}
{{- $redis := default dict (default dict $stack.redis).external -}}

{{- /* Credentials: where each lies, by the name of its field in the stack. */ -}}
{{- $credentials := list -}}
{{- $generated := list -}}
{{- $own := dict -}}
{{- range $field, $value := dict "signing_key" $v.secrets.signingKey "macaroon_secret_key" $v.secrets.macaroonSecretKey
      "form_secret" $v.secrets.formSecret "registration_shared_secret" $v.secrets.registrationSharedSecret
      "worker_replication_secret" $v.secrets.workerReplicationSecret "database_password" $v.secrets.databasePassword
      "redis_password" $v.secrets.redisPassword -}}
{{- if $value.secret -}}
{{- $credentials = append $credentials (dict "field" $field "secret" $value.secret "key" $value.key) -}}
{{- else if $value.value -}}
{{- $_ := set $own $field $value.value -}}
{{- $credentials = append $credentials (dict "field" $field "secret" (printf "%s-credentials" $name) "key" $field) -}}
{{- else if eq $field "database_password" -}}
{{- if $v.cloudNativePg.enabled -}}
{{- $credentials = append $credentials (dict "field" $field "secret" (printf "%s-postgres-app" $name) "key" "password") -}}
{{- else -}}
{{- $problems = append $problems "secrets.databasePassword: give the password of the database user as {value: ...} or {secret: ..., key: ...}" -}}
{{- end -}}
{{- else if and (eq $field "redis_password") $redis.host -}}
{{- else if $v.secrets.generate -}}
{{- $generated = append $generated $field -}}
{{- $credentials = append $credentials (dict "field" $field "secret" (printf "%s-generated" $name) "key" $field) -}}
{{- else -}}
{{- $problems = append $problems (printf "secrets.%s: give it as {value: ...} or {secret: ..., key: ...}, or set secrets.generate" (camelcase $field | untitle)) -}}
{{- end -}}
{{- end -}}

{{- /* Media. */ -}}
{{- $volume := $v.media.persistence -}}
{{- /* What lies beside S3 is a copy, which needs no volume. */ -}}
{{- $claim := ternary (default (printf "%s-media" $name) $volume.existingClaim) "" (and $volume.enabled (not $v.media.s3.enabled)) -}}
{{- $shared := or $v.media.s3.enabled (and $claim (or $volume.existingClaim (has "ReadWriteMany" $volume.accessModes))) -}}
{{- if and (gt (int $mediaProcesses) 1) (not $shared) -}}
{{- $problems = append $problems (printf "media: %d processes serve media and must see the same files; set media.persistence.accessModes to [ReadWriteMany], media.persistence.existingClaim to such a claim, or media.s3" (int $mediaProcesses)) -}}
{{- end -}}
{{- if $v.media.s3.enabled -}}
{{- if not $v.media.s3.bucket }}{{ $problems = append $problems "media.s3.bucket: name the bucket" }}{{ end -}}
{{- if ne (empty $v.media.s3.accessKey) (empty $v.media.s3.secretKey) -}}
{{- $problems = append $problems "media.s3: give both accessKey and secretKey, or neither" -}}
{{- end -}}
{{- range $field, $value := dict "s3_access_key" $v.media.s3.accessKey "s3_secret_key" $v.media.s3.secretKey -}}
{{- if $value.value }}{{ $_ := set $own $field $value.value }}{{ end -}}
{{- end -}}
{{- end -}}
{{- if and $v.httpRoute.enabled (not $v.httpRoute.parentRefs) -}}
{{- $problems = append $problems "httpRoute.parentRefs: name the Gateway" -}}
{{- end -}}
{{- if and $v.certificate.enabled (not $v.certificate.issuer.name) -}}
{{- $problems = append $problems "certificate.issuer.name: name the issuer of cert-manager's" -}}
{{- end -}}

{{- /* The stack, completed by what only the chart knows. */ -}}
{{- $base := default (printf "https://%s" (default "localhost" $stack.server_name)) $stack.public_base_url -}}
{{- $host := (urlParse $base).hostname -}}
{{- $_ := set $stack "preset" $preset -}}
{{- $_ := set $stack "public_base_url" $base -}}
{{- $any := ternary "[::]" "0.0.0.0" (has "IPv6" $v.services.ipFamilies) -}}
{{- $listen := dict "address" (printf "%s:8008" $any) "metrics" (printf "%s:9090" $any) "trust_forwarded_for" (or $v.ingress.enabled $v.httpRoute.enabled) -}}
{{- $_ := set $stack "listen" (mergeOverwrite $listen (default dict $stack.listen)) -}}
{{- $_ := set $stack "network" (dict "hosts" (dict "prefix" (printf "%s-" $name) "suffix" (printf ".%s-processes.%s" $name $domain)
      "main" "main-1" "http_port" 8008 "private_port" 9093 "pools" (dict "suffix" (printf ".%s" $domain)))) -}}
{{- $_ := set $stack "data_dir" "/data" -}}
{{- $server := dict "host" (printf "%s-postgres-rw.%s" $name $domain) -}}
{{- $server = mergeOverwrite $server $database -}}
{{- $direct := deepCopy $server -}}
{{- if $v.pgbouncer.enabled -}}
{{- $_ := set $server "host" (printf "%s-pgbouncer.%s" $name $domain) -}}
{{- $_ := set $server "port" 5432 -}}
{{- $_ := set $server "sslmode" "disable" -}}
{{- end -}}
{{- $_ := set $stack "database" (mergeOverwrite (deepCopy (default dict $stack.database)) (dict "external" $server)) -}}
{{- if and $v.cloudNativePg.enabled (not $stack.database.max_connections) -}}
{{- $_ := set $stack.database "max_connections" 400 -}}
{{- end -}}
{{- if not $redis.host -}}
{{- $_ := set $stack "redis" (dict "external" (dict "host" (printf "%s-valkey.%s" $name $domain) "port" 6379)) -}}
{{- end -}}
{{- $_ := set $stack "media" (mergeOverwrite (deepCopy (default dict $stack.media)) (dict "store_path" "/media" "shared_storage" (not (not $shared)))) -}}
{{- $files := dict -}}
{{- range $credentials }}{{ $_ := set $files .field (dict "file" (printf "/secrets/%s" .field)) }}{{ end -}}
{{- $_ := set $stack "secrets" $files -}}
{{- if $v.media.s3.enabled -}}
{{- $config := dict "bucket" $v.media.s3.bucket -}}
{{- with $v.media.s3.region }}{{ $_ := set $config "region_name" . }}{{ end -}}
{{- with $v.media.s3.endpoint }}{{ $_ := set $config "endpoint_url" . }}{{ end -}}
{{- $provider := dict "module" "s3_storage_provider.S3StorageProviderBackend" "store_local" true "store_remote" true "store_synchronous" true "config" $config -}}
{{- $own := default dict (default dict $stack.synapse).extra -}}
{{- $_ := set $stack "synapse" (dict "extra" (merge (dict "media_storage_providers" (list $provider)) $own)) -}}
{{- end -}}
{{- if $stack.workers -}}
{{- range $group, $own := $stack.workers }}{{ if kindIs "invalid" $own }}{{ $_ := set $stack.workers $group dict }}{{ end }}{{ end -}}
{{- end -}}

{{- /* What a Synapse process may have to restart for: everything but what only the router reads, and how large pools are. */ -}}
{{- $read := omit (deepCopy $stack) "listen" "well_known" -}}
{{- range $groups -}}
{{- if and .elastic (hasKey $workers .name) -}}
{{- $_ := set $read.workers .name (omit (default dict (get $read.workers .name)) "count" "max_count") -}}
{{- end -}}
{{- end -}}
{{- if $read.workers -}}
{{- range $group, $own := $read.workers }}{{ if not $own }}{{ $_ := unset $read.workers $group }}{{ end }}{{ end -}}
{{- end -}}
{{- if not $read.workers }}{{ $read = omit $read "workers" }}{{ end -}}
{{- $restart := dict "checksum/credentials" (toJson $own | sha256sum) -}}
{{- if not $v.rollout.enabled -}}
{{- $_ := set $restart "checksum/stack" (toJson $read | sha256sum) -}}
{{- end -}}

{{- if $problems -}}
{{- fail (printf "\n\nThe values of `%s` cannot be installed:\n  * %s\n" .Release.Name (join "\n  * " $problems)) -}}
{{- end -}}
{{- dict "name" $name "domain" $domain "groups" $groups "processes" (prepend $groups $main) "stack" $stack "direct" $direct "restart" $restart
      "credentials" $credentials "generated" $generated "own" $own "host" $host "valkey" (not $redis.host) "claim" $claim | toJson -}}
{{- end -}}
