# The signer reads DKIM keys. No other role may, and none but administrators sign through transit (signer-transit.hcl).
path "@mount@/data/@prefix@/dkim/*" {
  capabilities = ["read"]
}
path "@mount@/metadata/@prefix@/dkim/*" {
  capabilities = ["read", "list"]
}
