# For the commands of operators: makes and changes all secrets of Postroad, destroys private keys. It reads
# private keys too: a key is tried before it is made active.
path "@mount@/data/@prefix@/*" {
  capabilities = ["create", "read", "update", "patch"]
}
path "@mount@/metadata/@prefix@/*" {
  capabilities = ["create", "read", "update", "patch", "list", "delete"]
}
path "@mount@/destroy/@prefix@/*" {
  capabilities = ["update"]
}
