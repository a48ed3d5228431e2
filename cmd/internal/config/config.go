// Package config holds every setting of postroad: its name, its default, its unit and why one would change it.
//
// A configuration is one YAML document. Load reads it strictly and reports everything that is wrong at once, each fault with
// its file and line:
//
//	c, err := config.Load("/etc/postroad/postroad.yaml") // errors.As(err, &config.Errors{})
//	c := config.Default()                                // no file at all works too
//
// The comments of the structs below are the reference: Settings reads them from this source, and `config schema` and
// docs/configuration.md are made of them. A paragraph that begins with "Change it" is the reason to change the setting.
// Only this package knows the configuration; roles take plain Options, which the daemon fills.
package config

import (
	"net/netip"
	"time"
)

// Config is the whole configuration of one process.
type Config struct {
	// Hostname is the name of this machine in the SMTP banner, in EHLO and in Received fields. Empty takes the name that the operating
	// system gives.
	//
	// Change it when that is not the fully qualified name that the address of outgoing connections resolves to: receivers compare the two.
	Hostname string `yaml:"hostname"`

	// Domain is the domain that this relay speaks for: notifications come from its postmaster, and local parts without a domain
	// are completed with it. Empty takes hostname.
	//
	// Change it when notifications should come from (and be signed for) the organisation's domain.
	Domain string `yaml:"domain"`

	// DataDir is the directory of the embedded queue and of the admin socket. It is made with mode 0700. One process at a time can have it.
	//
	// Change it to a directory on a disk that honours fsync: what is answered with 250 lies there.
	DataDir string `yaml:"data_dir"`

	// Roles are what this process does: queue embeds the store (with queue.urls there is nothing to embed), ops is the way in for operators,
	// signer and delivery do what they say, ingress accepts mail.
	//
	// Change it to run each role as a process of its own, which then need queue.urls.
	Roles []Role `yaml:"roles"`

	Queue    Queue    `yaml:"queue"`
	Ingress  Ingress  `yaml:"ingress"`
	Signer   Signer   `yaml:"signer"`
	Secrets  Secrets  `yaml:"secrets"`
	Delivery Delivery `yaml:"delivery"`
	Ops      Ops      `yaml:"ops"`
	Log      Log      `yaml:"log"`

	source *source // where each setting was given, for messages
}

// Queue says where the queue is.
type Queue struct {
	// Listen is the address on which the embedded queue serves other processes. Empty opens no port.
	//
	// Change it when the other roles run as processes of their own on this machine and this one has the queue role. The port asks for no
	// password, so it must be a loopback address, and every local user can then read mail.
	Listen string `yaml:"listen" kind:"address"`

	// URLs are the addresses of a queue outside this process: nats:// or tls://, all servers of the cluster. Empty embeds the queue in
	// data_dir.
	//
	// Change it for a cluster, or to run roles as processes of their own.
	URLs []string `yaml:"urls"`

	// Credentials is a file with this process's login at urls: a NATS credentials file, or the seed of an nkey. It must not be readable by
	// others.
	//
	// Change it when the queue asks for a login.
	Credentials string `yaml:"credentials" kind:"file"`

	// Inbox is the prefix of the subjects on which this process gets answers. The login must allow it.
	//
	// Change it when the servers give each role its own prefix, as those of deploy/nats do, so that no role can listen to another's answers.
	Inbox string `yaml:"inbox"`

	// Manage lets this process bring streams and consumers to their wanted state when it starts. Otherwise it waits until another process
	// has done that.
	//
	// Change it to false in a cluster for roles whose login may not change streams; at least one process must manage.
	Manage bool `yaml:"manage"`

	// TLS applies to urls.
	TLS QueueTLS `yaml:"tls"`

	// Replicas is how many servers hold each message: 1, or 3 in a cluster.
	//
	// Change it to 3 with three queue servers; a 250 then means that a majority has the message on disk.
	Replicas int `yaml:"replicas"`

	// MaxBytes bounds the stored mail. Well before it is reached, clients get 452 and keep their mail.
	//
	// Change it to what the disk can spare: the limit must be reached before the disk is full.
	MaxBytes Size `yaml:"max_bytes"`

	// Monitor are HTTP monitoring addresses of the servers of urls. They are asked whether the servers sync each write.
	//
	// Change it to the servers' monitoring ports, so that a server that would lose acknowledged mail is found at the start.
	Monitor []string `yaml:"monitor"`

	// Node is the name of this process in events and leases; it must be unique in the cluster. Empty takes the host name and process id.
	//
	// Change it when host names are not unique.
	Node string `yaml:"node"`
}

// Ingress is how mail comes in.
type Ingress struct {
	// Listeners are the sockets that accept mail.
	Listeners []Listener `yaml:"listeners"`

	// MaxMessage bounds the octets of one message.
	//
	// Change it together with what the next hops take: a message that they refuse comes back as a bounce.
	MaxMessage Size `yaml:"max_message"`

	// MaxRecipients bounds the recipients of one message. More get 452 and the client sends the rest in a further transaction.
	MaxRecipients int `yaml:"max_recipients"`

	// MaxConnections bounds the connections of all clients together. More get 421.
	//
	// Change it when a large fleet connects at once; each connection costs about 100 KiB.
	MaxConnections int `yaml:"max_connections"`

	// MaxClientConnections bounds the connections of one client address.
	//
	// Change it when many hosts share an address.
	MaxClientConnections int `yaml:"max_client_connections"`

	// PassLongLines lets lines above 998 octets through, which RFC 5322 §2.1.1 forbids and some receivers break. Otherwise such a message
	// is refused with 550.
	//
	// Change it to true when programs that you cannot correct send such lines.
	PassLongLines bool `yaml:"pass_long_lines"`

	// IdleTimeout ends a session in which the client says nothing (RFC 5321 §4.5.3.2.7 asks for 5 minutes at least).
	IdleTimeout time.Duration `yaml:"idle_timeout"`

	// ConnectionRate bounds the new connections a minute from one client address outside the trusted networks. More get 421. 0 is no bound.
	//
	// Change it when strangers can reach a listener and hammer it.
	ConnectionRate int `yaml:"connection_rate"`

	// LoginFailures bounds the failed logins of one session. Then it ends with 421.
	LoginFailures int `yaml:"login_failures"`

	// BanAfter is how many sessions of strangers in a row are ended for their errors before their address is banned for ban_time. A login or an
	// accepted message from the same address begins the count anew.
	BanAfter int `yaml:"ban_after"`

	// BanTime is how long a banned address gets 421.
	BanTime time.Duration `yaml:"ban_time"`

	// Classes say what the clients of an account's class may do. The class of trusted networks is network, that of what anybody sends to
	// delivery.bounce_domain is bounces (10,000 recipients an hour unless it is named here); what is not named here is the class default.
	Classes []ClientClass `yaml:"classes"`

	// RefuseNullMX refuses senders (550 5.7.27) whose domain says by a null MX record that it takes no mail: notifications would reach nobody.
	// It costs a DNS look-up for each domain that is new, by delivery.resolvers; when that fails the sender is taken.
	RefuseNullMX bool `yaml:"refuse_null_mx"`

	// AllowedRecipients are the only recipients that mail is taken for: user@example.com, @example.com, or .example.com for every domain below
	// it. Others get 550. Empty takes mail for everybody.
	//
	// Change it on a system that is no production, so that tests cannot write to customers.
	AllowedRecipients []string `yaml:"allowed_recipients"`

	// RepeatWindow is how long a message is remembered, so that a client that vanished before it read its 250 does not queue it a second time
	// (see classes, idempotent). Memory only: 64 MiB at most, the oldest are forgotten first.
	RepeatWindow time.Duration `yaml:"repeat_window"`

	Rewrite Rewrite `yaml:"rewrite"`
}

// ClientClass is what the clients of one class may do.
type ClientClass struct {
	// Name is the class as accounts give it, network for trusted networks, or default.
	Name string `yaml:"name"`

	// ClientRecipients bounds the recipients of each client within client_window, counted over the whole cluster. 0 is no bound.
	//
	// Change it to find runaway programs and stolen passwords early: 360 an hour suits a host, 100 in 6 hours a person.
	ClientRecipients int `yaml:"client_recipients"`

	// ClientWindow is the time that client_recipients is for.
	ClientWindow time.Duration `yaml:"client_window"`

	// ClassRecipients bounds the recipients of all clients of the class together within class_window. 0 is no bound.
	ClassRecipients int `yaml:"class_recipients"`

	// ClassWindow is the time that class_recipients is for.
	ClassWindow time.Duration `yaml:"class_window"`

	// OverLimit is what clients get that are over a limit: defer answers 450 and they keep their mail, reject answers 550 and they bounce it.
	OverLimit OverLimit `yaml:"over_limit"`

	// Submits says that these clients hand in new mail: it must have one From field, Bcc is removed, raw 8-bit header text is encoded
	// (RFC 6409 §8). Otherwise mail is relayed as it is.
	//
	// Change it to false for mail servers that relay the mail of others.
	Submits bool `yaml:"submits"`

	// Idempotent finds a message that the same client has brought within repeat_window: same Message-ID, envelope and content. It gets the
	// 250 of the first and is not sent twice.
	//
	// Change it to false for programs that send the same message several times on purpose.
	Idempotent bool `yaml:"idempotent"`

	// HideReceived takes the names and addresses of the client's side out of the Received fields of mail that these clients submit, the one
	// that is added here among them. The fields stay, since loops are found by their number; the log keeps the address. Mail that is signed
	// already keeps its own.
	//
	// Change it to true when the addresses of hosts and people are nobody's business.
	HideReceived bool `yaml:"hide_received"`

	// VERP sends their mail with a reverse-path of delivery.bounce_domain that names the message, so that what comes back is known. Receivers
	// then look for the SPF record of that domain.
	//
	// Change it to true for mail of which bounces and complaints count: newsletters, invoices.
	VERP bool `yaml:"verp"`

	// MaxHold is how long these clients may have a message held before it goes out (FUTURERELEASE, RFC 4865), at most 365d. 0 does not
	// offer it.
	//
	// Change it for programs that schedule mail. What is held counts against max_bytes of the queue.
	MaxHold time.Duration `yaml:"max_hold"`
}

// Rewrite is how addresses are changed on the way in. The files are read again when they change; one with a fault leaves the old one in force.
type Rewrite struct {
	// Rules is a file of canonical rules, see docs/rewriting.md.
	Rules string `yaml:"rules" kind:"file"`

	// Aliases is a file of aliases in the manner of /etc/aliases.
	Aliases string `yaml:"aliases" kind:"file"`

	// RecipientDelimiter stands between a local part and its extension: with +, user+tag falls back to the alias of user.
	RecipientDelimiter string `yaml:"recipient_delimiter"`
}

// Listener is one socket that accepts mail.
type Listener struct {
	// Address is host:port to listen on; :2525 is every address of the machine. systemd:NAME takes a socket that systemd has opened
	// (FileDescriptorName=NAME).
	Address string `yaml:"address" kind:"address"`

	// TrustedNetworks may relay. Everybody else is refused, so never give a network here that strangers can use.
	//
	// Change it to the networks of the hosts that send through this relay.
	TrustedNetworks []netip.Prefix `yaml:"trusted_networks"`

	// TLS is none, starttls (offered) or implicit (from the first octet on).
	//
	// Change it to encrypt what clients send; cert and key are then needed.
	TLS TLSMode `yaml:"tls"`

	// Cert is the PEM certificate chain that clients see.
	Cert string `yaml:"cert" kind:"file"`

	// Key is the private key of cert. It must not be readable by others.
	Key string `yaml:"key" kind:"file"`

	// Certificates are further certificates: of another algorithm for clients that want it, or of other names, chosen by SNI. All files are
	// read again when they change.
	Certificates []Certificate `yaml:"certificates"`

	// Auth is none, optional (clients may log in, trusted networks need not) or required (everybody must).
	//
	// Change it to give each host an account of its own, see docs/accounts.md.
	Auth AuthMode `yaml:"auth"`

	// AuthInClear lets clients log in without TLS. Anybody on the way can then read passwords.
	AuthInClear bool `yaml:"auth_in_clear"`

	// ClientCA is a file of PEM certificates. A client that shows a certificate of theirs can log in by it (EXTERNAL).
	ClientCA string `yaml:"client_ca" kind:"file"`

	// AskCertificate asks clients for a certificate also without client_ca: accounts may name it by its fingerprint.
	AskCertificate bool `yaml:"ask_certificate"`

	// Bounces is refuse, or accept: anybody may then send to the addresses of delivery.bounce_domain that are in use, and to nobody else.
	//
	// Change it to accept on the listener that the MX records of delivery.bounce_domain lead to.
	Bounces BounceMode `yaml:"bounces"`

	// ProxyNetworks are the addresses of load balancers. They must then send a PROXY header (v1 or v2), which says who the client is, and
	// nobody else can connect. No trusted network may contain them.
	//
	// Change it to the balancer's addresses when it is set to send the header (HAProxy: send-proxy-v2).
	ProxyNetworks []netip.Prefix `yaml:"proxy_networks"`

	// Banner is what the greeting says behind the hostname.
	Banner string `yaml:"banner"`

	// LineEnds is what happens to a bare CR or LF in a message: reject answers 550, normalize makes a bare LF a line end and a bare CR a blank.
	// Neither of them ever ends a message.
	//
	// Change it to normalize for old programs that you cannot correct.
	LineEnds LineEnds `yaml:"line_ends"`

	// MaxConnections bounds the connections to this listener. 0 leaves it to ingress.max_connections.
	MaxConnections int `yaml:"max_connections"`

	// MaxClientConnections bounds the connections of one client address to this listener. 0 leaves it to ingress.max_client_connections.
	MaxClientConnections int `yaml:"max_client_connections"`
}

// Signer is how DKIM signatures are made.
type Signer struct {
	// MissingKey is what happens to mail of a domain that has no key: hold keeps it in the queue until a key is there, pass sends it unsigned,
	// relay sends it with a signature of domain only.
	//
	// Change it to pass when some domains are signed elsewhere or not at all. A forgotten key then hurts reputation instead of delaying mail.
	MissingKey MissingKey `yaml:"missing_key"`

	// AllowParent lets mail of news.example.com be signed by example.com when news.example.com has no key of its own.
	AllowParent bool `yaml:"allow_parent"`

	// RelaySignature adds a signature of domain to that of the author's. It waits for nothing: without a key of domain, mail goes out with
	// the author's alone.
	//
	// Change it to true for the feedback loops of large receivers: they send complaints to whoever has signed.
	RelaySignature bool `yaml:"relay_signature"`

	// Domains are those of authors for which other rules hold, see docs/dkim.md.
	Domains []SigningDomain `yaml:"domains"`

	// Window is how many mails the signer has in hand.
	Window int `yaml:"window"`

	// Expiry is how long a signature is valid (x=). 0 makes signatures that do not expire.
	//
	// Change it with care: mail that waits longer than this arrives with a dead signature. At least 24h, better 9 days.
	Expiry time.Duration `yaml:"expiry"`

	// Rotation is how keys live, for the dkim commands and for signers that do it by themselves.
	Rotation Rotation `yaml:"rotation"`
}

// Secrets is where keys and passwords come from.
type Secrets struct {
	// Dir is a directory that holds dkim/DOMAIN/SELECTOR.pem; files must have mode 0600. Empty takes secrets in data_dir.
	//
	// Change it to where your configuration management puts keys.
	Dir string `yaml:"dir" kind:"directory"`

	// Vault is where secrets are instead, when it has an address.
	Vault Vault `yaml:"vault"`
}

// Vault says how to reach HashiCorp Vault. Below mount and prefix lie dkim/DOMAIN/SELECTOR, clients/NAME and tls/NAME, see
// docs/vault.md. Nothing is taken from VAULT_* of the environment.
type Vault struct {
	// Address is the URL of Vault, or of a Vault Agent on this machine. Empty: secrets are in dir.
	Address string `yaml:"address"`

	// Namespace is that of Vault Enterprise.
	Namespace string `yaml:"namespace"`

	// CA is a file with the authorities that may vouch for Vault. Empty: those of the system.
	CA string `yaml:"ca" kind:"file"`

	// Mount is that of the KV v2 engine.
	Mount string `yaml:"mount"`

	// Prefix is the path below which all secrets of this installation lie.
	//
	// Change it to keep several installations, production and test say, in one engine.
	Prefix string `yaml:"prefix"`

	// Transit is the mount of the transit engine, for keys that never leave Vault.
	Transit string `yaml:"transit"`

	// PKI is the mount of the PKI engine, for certificates that Vault issues to listeners.
	PKI string `yaml:"pki"`

	// Login is how this process proves who it is: approle, kubernetes, cert or token (a file that Vault Agent keeps).
	Login VaultLogin `yaml:"login"`

	// LoginMount is where that method is mounted. Empty: under its own name.
	LoginMount string `yaml:"login_mount"`

	// Role is the role id (approle) or the name of the role (kubernetes, cert).
	Role string `yaml:"role"`

	// SecretFile holds the secret id (approle), the service account's token (kubernetes; empty: where Kubernetes puts it) or the token (token).
	// It must have mode 0600, and is read again at each login.
	SecretFile string `yaml:"secret_file"`

	// Wrapped says that secret_file holds a wrapping token for the secret id.
	Wrapped bool `yaml:"wrapped"`

	// Cert is the certificate of this process, for cert.
	Cert string `yaml:"cert" kind:"file"`

	// Key is its private key.
	Key string `yaml:"key" kind:"file"`
}

// Delivery is how mail goes out.
type Delivery struct {
	// Routes say where which mail goes. Of those whose conditions hold the winner is the one with the most specific domain (the domain
	// itself, the longest .suffix, /pattern/, *), then the one with more conditions, then with the more specific sender, then the one
	// written first; `postroad explain` tells. What no route matches goes to the MX hosts of its domain.
	Routes []Route `yaml:"routes"`

	// RoutesFile is a file with further routes, below the word routes as here. A change of it is in force within seconds, without a restart.
	// When there is a fault in it, the routes before stay in force, and the log and the status say so.
	//
	// Change it when routes change more often than the configuration, or another program writes them.
	RoutesFile string `yaml:"routes_file" kind:"file"`

	// Retry is when mail is tried again: waits, of which the last one repeats (1m, 5m, 15m, 1h, 4h), retry rules as Exim has them
	// (F,2h,15m; G,16h,1h,1.5; F,4d,6h) or the back-off of Postfix (backoff 300s..4000s). See docs/delivery.md. A list is taken too.
	//
	// Change it to be gentler or more eager. 10s, 1m, 5m, 15m, 1h and 4h cost least; others are made of several of them.
	Retry Schedule `yaml:"retry"`

	// RetryRules say otherwise for some mail, or for some kinds of failure.
	RetryRules []RetryRule `yaml:"retry_rules"`

	// RetryJitter makes each wait up to so many percent longer, differently for each message, so that what failed together does not come back
	// together. Steps are 10s, above 15m 1m, above 1h 5m, above 4h 15m.
	//
	// Change it to 0 for waits that are exactly as written.
	RetryJitter int `yaml:"retry_jitter"`

	// GreylistRetry is the first wait after a reply by which a receiver wants to see us come again (RFC 6647). One that names a longer time, up
	// to 15 minutes, is given that. 0s leaves it to retry.
	GreylistRetry time.Duration `yaml:"greylist_retry"`

	// MaxAge is how long a message is tried. Then it is returned to its sender.
	//
	// Change it when senders would rather know earlier; RFC 5321 §4.5.4.1 asks for 4 to 5 days.
	MaxAge time.Duration `yaml:"max_age"`

	// BounceMaxAge is how long mail with the null reverse-path is tried, which is notifications mostly. Then it is dropped and counted, since nobody
	// is to be told.
	BounceMaxAge time.Duration `yaml:"bounce_max_age"`

	Suppress Suppress `yaml:"suppress"`

	BounceLimit BounceLimit `yaml:"bounce_limit"`

	// HeldMaxAge is how long mail may be held, by an operator or a policy, before it goes back to its sender. 0s holds it for ever.
	//
	// Change it when nobody looks after held mail: Exim's timeout_frozen_after.
	HeldMaxAge time.Duration `yaml:"held_max_age"`

	// DelayNotice is the age at which the sender of a waiting message is told, once. 0s tells nobody; so does the default when max_age is
	// shorter.
	DelayNotice time.Duration `yaml:"delay_notice"`

	// Chunking sends a message of up to 32 KiB in one flight with its envelope (BDAT) to hosts that offer PIPELINING and CHUNKING:
	// one round trip instead of two. Turn it off when a host takes chunks and spoils them.
	Chunking bool `yaml:"chunking"`

	// DoubleBounce is what happens when mail with the null reverse-path fails, a notification for the most part: discard counts and logs it, an
	// address gets a copy with what became of it. Its sender is never told, there is none.
	//
	// Change it to a mailbox that somebody reads when notifications must not vanish.
	DoubleBounce string `yaml:"double_bounce"`

	// BounceClasses are rules that say why a host refused, in one word, for events, metrics and suppression. They come before those that are
	// built in; the first that fits decides.
	//
	// Change it when a receiver says in its own words what the built-in rules do not know.
	BounceClasses []BounceClass `yaml:"bounce_classes"`

	// BounceDomain is the domain of addresses that bounces come back to; its MX records lead to listeners with bounces: accept. It must be one
	// of its own, in which nobody has a mailbox. Empty: there are none. All processes need the same.
	//
	// Change it to know of bounces that come after a host has taken the mail, see docs/delivery.md.
	BounceDomain string `yaml:"bounce_domain"`

	// BounceForward tells senders what comes back for their mail, in a notification.
	//
	// Change it to false when they read it in the events. A sender who asked for notifications may then not get those of hosts further on.
	BounceForward bool `yaml:"bounce_forward"`

	// BounceMailboxes are mailboxes of bounce_domain that people read, postmaster and abuse for a start. Anybody may write to them.
	BounceMailboxes []BounceMailbox `yaml:"bounce_mailboxes"`

	// BounceFeedback are local parts of bounce_domain that feedback loops (ARF, RFC 5965) send to, such as fbl.
	BounceFeedback []string `yaml:"bounce_feedback"`

	// SiteConnections bounds the connections of this process to one site (the domains that share MX hosts). shaping bounds those of all
	// processes together.
	//
	// Change it so that one process cannot take all connections of a site, or together with shaping for a smart host that can take more.
	SiteConnections int `yaml:"site_connections"`

	// Window is how many jobs this process has in hand.
	//
	// Change it when slow sites keep the window full; after a crash at most these jobs can be delivered twice.
	Window int `yaml:"window"`

	// Shaping limits connections and rates by site, for all delivery processes together.
	Shaping []Shaping `yaml:"shaping"`

	// Reactions are what is done when receivers say that they want less, beside what is built in for large ones.
	Reactions []Reaction `yaml:"reactions"`

	// LocalAddress is the source address of outgoing connections. Empty leaves it to the operating system.
	//
	// Change it on a machine with several addresses to the one that SPF and reverse DNS name.
	LocalAddress string `yaml:"local_address" kind:"ip"`

	// Sources are addresses and names to send from.
	Sources []Source `yaml:"sources"`

	// Pools are sets of sources that share mail. A message goes by the same source at each try, as long as some process has it.
	Pools []Pool `yaml:"pools"`

	// Pool is the pool for routes that name none. Empty: the operating system chooses the address, or local_address.
	Pool string `yaml:"pool"`

	// WarmUp is how sources that are new get more mail day by day.
	WarmUp WarmUp `yaml:"warm_up"`

	// Resolvers are DNS servers, as address or address:port. Empty takes those of /etc/resolv.conf.
	//
	// Change it to a resolver on this machine: a relay asks a lot.
	Resolvers []string `yaml:"resolvers"`

	// TLSPolicies is what is made of the TLS policies of recipients' domains.
	TLSPolicies TLSPolicies `yaml:"tls_policies"`

	// TLSReports are the daily reports of RFC 8460.
	TLSReports TLSReports `yaml:"tls_reports"`

	// TrustedResolvers are addresses of resolvers, besides those on loopback that resolvers names, that validate DNSSEC and are reached by a
	// way that nobody can tamper with. What /etc/resolv.conf names, and 127.0.0.11 of a container's network, is trusted only when it is here. Only when all resolvers are trusted is an answer believed to be proven, as DANE needs.
	//
	// Change it when the validating resolver is another machine of your own network.
	TrustedResolvers []string `yaml:"trusted_resolvers"`

	// OwnHosts are names and addresses of this relay in MX records, besides hostname, the addresses of the machine and the sources: an address
	// of a load balancer, or outside of a NAT. Mail goes only to hosts that are better than these.
	OwnHosts []string `yaml:"own_hosts"`

	// AllowLiterals lets mail to addresses such as user@[192.0.2.1] out; otherwise it is returned.
	AllowLiterals bool `yaml:"allow_literals"`
}

// Ops is the way in for operators.
type Ops struct {
	// Socket is the unix socket of the admin API, mode 0600. Empty takes ops.sock in data_dir.
	Socket string `yaml:"socket"`

	// Address is host:port for /healthz, /readyz and /metrics over TCP; the admin API is not served there. Empty opens no port.
	//
	// Change it so that Prometheus and load balancers can ask.
	Address string `yaml:"address" kind:"address"`
}

// Log is what the process says.
type Log struct {
	// Level is the least level that is written: debug, info, warn or error.
	Level LogLevel `yaml:"level"`

	// Format is text, json, or auto: text on a terminal, JSON otherwise.
	Format LogFormat `yaml:"format"`
}
