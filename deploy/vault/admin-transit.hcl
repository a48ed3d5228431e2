# With setup.sh -t, added to the policy admin: keeps transit keys of its own prefix, and tries them.
path "@transit@/keys/@keys@*" {
  capabilities = ["create", "read", "update", "delete"]
}
path "@transit@/sign/@keys@*" {
  capabilities = ["update"]
}
