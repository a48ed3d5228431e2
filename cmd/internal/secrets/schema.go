package secrets

// Kinds of secrets: the directory that they lie in.
const (
	KindDKIM       = "dkim"
	KindClients    = "clients"
	KindTLS        = "tls"
	KindSmarthosts = "smarthosts"
	KindAuthority  = "ca"
	KindACME       = "acme"
)

// Fields of tls/<name>; acme/<name> has the second one alone.
const (
	fieldCertificate = "certificate"
	fieldPrivateKey  = "private_key"
)

// Kind describes secrets of one kind, for people and for programs that write them.
type Kind struct {
	Name    string   `json:"kind"`
	Path    string   `json:"path"` // of a secret, below mount and prefix
	Files   string   `json:"files"`
	Meaning string   `json:"meaning"`
	Readers []string `json:"readers"` // roles whose policy lets them read it
	Writer  string   `json:"written_by"`
	Fields  []Field  `json:"fields"`
	Example string   `json:"example"` // as YAML, with comments
}

// Field is one field of a secret.
type Field struct {
	Name     string `json:"name"` // of a field in an object of a list: passwords[].id
	Form     string `json:"form"` // what it holds, with its unit
	Meaning  string `json:"meaning"`
	Required bool   `json:"required"`
	Secret   bool   `json:"secret"` // who knows it can do harm
}

// Schema is the tree of secrets.
func Schema() []Kind {
	return []Kind{dkimKind(), clientsKind(), tlsKind(), smarthostsKind(), authorityKind(), acmeKind()}
}

func dkimKind() Kind {
	return Kind{
		Name: KindDKIM, Path: "dkim/<domain>/<selector>",
		Files:   "dkim/<domain>/<selector>.pem (the key) and <selector>.json (all else)",
		Meaning: "A key that signs mail of a domain. The record belongs at <selector>._domainkey.<domain>.",
		Readers: []string{"signer"},
		Writer:  "postroad dkim; a key that is put there by hand, with nothing but private_key, is active at once",
		Fields: []Field{
			{"private_key", "PEM", "RSA of 1024 to 4096 bits, or Ed25519. Either this or transit_key.", false, true},
			{"transit_key", "name", "Key of Vault's transit engine, dkim-… (with another prefix than postroad: PREFIX-dkim-…), which never leaves it.", false, false},
			{"transit_version", "whole number from 1", "Version of that key.", false, false},
			{"state", "generated, published, active, retiring, revoked or removed", "Only an active key signs. Absent: active.", false, false},
			{"algorithm", "rsa-sha256 or ed25519-sha256", "Signature algorithm.", false, false},
			{"bits", "bits", "Length of an RSA key; 256 for Ed25519.", false, false},
			{"record", "text", "Value of the TXT record.", false, false},
			{"history", "JSON", "When the key came into which state, and why.", false, false},
			{"by", "user@host", "Who made it.", false, false},
		},
		Example: `private_key: |            # by hand; better: postroad dkim new example.com
  -----BEGIN PRIVATE KEY-----
  …
`,
	}
}

func clientsKind() Kind {
	return Kind{
		Name: KindClients, Path: "clients/<name>",
		Files:   "clients/<name>.json",
		Meaning: "A host, service or person that may log in. Its name is that of the secret.",
		Readers: []string{"ingress"},
		Writer:  "postroad client; a secret with nothing but password is enough",
		Fields: []Field{
			{"version", "1", "Form of the record. Required unless there is a password.", false, false},
			{"class", "word", "Limits go by it: host, user, service. Absent: the default class.", false, false},
			{"disabled", "true or false", "Refuse it.", false, false},
			{"networks", "list of networks, such as 10.0.0.0/8", "Where it may log in from. Absent: anywhere.", false, false},
			{"senders", "list of address, @domain or .domain", "Senders that it may use. Absent: any.", false, false},
			{"certificates", "list of DNS name or sha256:<fingerprint>", "Client certificates that are as good as a password.", false, false},
			{"password", "text", "The password itself, for who adds a secret by other means than postroad. Not beside passwords.", false, true},
			{"passwords", "list of one or two objects", "What verifies its passwords, never a password.", false, false},
			{"passwords[].id", "word", "Tells the two apart in reports and logs.", true, false},
			{"passwords[].created", "time, RFC 3339", "When it was set. The newest is the one that clients should have.", true, false},
			{"passwords[].not_after", "time, RFC 3339", "End of its grace. Absent: none.", false, false},
			{"passwords[].scram_sha_256", "SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey", "Verifier for all mechanisms.", false, true},
			{"passwords[].argon2id", "$argon2id$v=19$m=KiB,t=passes,p=lanes$salt$key", "Verifier for PLAIN and LOGIN.", false, true},
		},
		Example: `version: 1
class: host               # a word; limits go by it
networks: [10.0.0.0/8]    # nowhere else
senders: ["@example.com"] # no other domain
passwords:                # postroad client passwd NAME sets a new one, and keeps the old one for a while
  - id: Xn6nZpew
    created: 2026-02-01T12:00:00Z
    scram_sha_256: SCRAM-SHA-256$4096:…
  - id: fgbPdmbj          # the old one
    created: 2026-01-01T12:00:00Z
    not_after: 2026-02-02T12:00:00Z
    scram_sha_256: SCRAM-SHA-256$4096:…
`,
	}
}

func tlsKind() Kind {
	return Kind{
		Name: KindTLS, Path: "tls/<name>",
		Files:   "tls/<name>/cert.pem (certificate) and key.pem (private_key)",
		Meaning: "The certificate of a listener that names it (ingress.listeners[].certificates: [{secret: <name>}]), or one that delivery shows to next hops (delivery.routes[].client_cert: <name>). The policy of delivery lets it read names that begin with client-, no other.",
		Readers: []string{"ingress"},
		Writer:  "postroad secrets rotate --server-cert, postroad secrets acme, or whoever issues certificates",
		Fields: []Field{
			{fieldCertificate, "PEM", "The server's certificate first, then each one's issuer; the root may be left out.", true, false},
			{fieldPrivateKey, "PEM", "Its key: RSA or ECDSA.", true, true},
		},
		Example: `certificate: |            # both change together, in one version
  -----BEGIN CERTIFICATE-----
  …
private_key: |
  -----BEGIN PRIVATE KEY-----
  …
`,
	}
}

func smarthostsKind() Kind {
	return Kind{
		Name: KindSmarthosts, Path: "smarthosts/<name>",
		Files:   "smarthosts/<name>.json",
		Meaning: "How to log in at the smart hosts of routes that name it: delivery.routes[].auth: <name>. A change is in force within 30 seconds.",
		Readers: []string{"delivery"},
		Writer:  "you",
		Fields: []Field{
			{"username", "text", "Account at the smart host.", true, false},
			{"password", "text", "Its password.", true, true},
			{"mechanisms", "list of SCRAM-SHA-256, PLAIN and LOGIN", "What may be used, the first that the host offers. Absent: all three, in this order.", false, false},
		},
		Example: `username: relay@example.com
password: …
`,
	}
}

func authorityKind() Kind {
	return Kind{
		Name: KindAuthority, Path: "ca/<name>",
		Files:   "ca/<name>/cert.pem, key.pem, previous.pem and cross.pem",
		Meaning: "The built-in authority, which issues certificates for tls/. Its name is postroad unless told otherwise. No role may read it: only who gives the commands.",
		Readers: []string{},
		Writer:  "postroad secrets rotate --ca; a root of your own with certificate and private_key is taken over by the next one",
		Fields: []Field{
			{"certificate", "PEM", "The root.", true, false},
			{"private_key", "PEM", "Its key, RSA or ECDSA. Keys of former roots are not kept.", true, true},
			{"previous", "PEM, newest first", "Former roots that have not ended. Clients may still trust nothing else.", false, false},
			{"cross", "PEM, newest first", "The root's key certified by the root before, and so on. Servers show them, so that clients with a former root verify.", false, false},
		},
		Example: `certificate: |
  -----BEGIN CERTIFICATE-----
  …
private_key: |
  -----BEGIN PRIVATE KEY-----
  …
`,
	}
}

func acmeKind() Kind {
	return Kind{
		Name: KindACME, Path: "acme/<name>",
		Files:   "acme/<name>/key.pem",
		Meaning: "The key of an account at an authority that issues certificates by ACME. Its name is the host of the authority unless told otherwise. No role may read it: only who gives the commands.",
		Readers: []string{},
		Writer:  "postroad secrets acme, when there is none",
		Fields: []Field{
			{fieldPrivateKey, "PEM", "The key: ECDSA on P-256. An account that you have elsewhere is taken over by its key, RSA or ECDSA.", true, true},
		},
		Example: `private_key: |
  -----BEGIN PRIVATE KEY-----
  …
`,
	}
}
