# For signers that rotate DKIM keys by themselves (signer.rotation.automatic), beside the policy signer: makes keys, changes their states,
# destroys private halves, of DKIM keys and nothing else. Whoever has it can make a domain sign with a key of theirs, and can stop it signing.
path "@mount@/data/@prefix@/dkim/*" {
  capabilities = ["create", "read", "update", "patch"]
}
path "@mount@/metadata/@prefix@/dkim/*" {
  capabilities = ["create", "read", "update", "patch", "list"]
}
path "@mount@/destroy/@prefix@/dkim/*" {
  capabilities = ["update"]
}
