# With setup.sh -t, added to the policy signer: it signs with transit keys of its own prefix.
path "@transit@/keys/@keys@*" {
  capabilities = ["read"]
}
path "@transit@/sign/@keys@*" {
  capabilities = ["update"]
}
