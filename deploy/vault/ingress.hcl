# The ingress reads what clients prove themselves by, and its own TLS keys, or has certificates issued for keys that it makes.
path "@mount@/data/@prefix@/clients/*" {
  capabilities = ["read"]
}
path "@mount@/metadata/@prefix@/clients/*" {
  capabilities = ["read", "list"]
}
path "@mount@/data/@prefix@/tls/*" {
  capabilities = ["read"]
}
path "@mount@/metadata/@prefix@/tls/*" {
  capabilities = ["read", "list"]
}
path "@pki@/sign/@name@" {
  capabilities = ["update"]
}
