# The delivery reads passwords for smart hosts, and the certificates that it shows to next hops: not those of listeners.
path "@mount@/data/@prefix@/smarthosts/*" {
  capabilities = ["read"]
}
path "@mount@/metadata/@prefix@/smarthosts/*" {
  capabilities = ["read", "list"]
}
path "@mount@/data/@prefix@/tls/client-*" {
  capabilities = ["read"]
}
path "@mount@/metadata/@prefix@/tls/client-*" {
  capabilities = ["read"]
}
