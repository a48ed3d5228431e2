package config

import (
	"strconv"
	"strings"
	"time"

	"postroad/queue/address"
)

// TLSPolicies is what is made of the TLS policies that recipients' domains publish.
type TLSPolicies struct {
	// DANE holds hosts to the TLSA records that DNSSEC proves: TLS is a must there, and a certificate that does not match keeps the mail
	// waiting. It rests on resolvers that validate: those on loopback addresses, or trusted ones.
	//
	// Change it to false only while name servers of your own are at fault; for one domain, use ignore.
	DANE bool `yaml:"dane"`

	// MTASTS fetches MTA-STS policies by HTTPS and holds hosts to them. Policies are kept in the queue, for all workers and over restarts.
	//
	// Change it to false where this machine may not open connections to port 443.
	MTASTS bool `yaml:"mta_sts"`

	// Ignore are recipients' domains whose DANE and MTA-STS policies are left alone; the TLS mode of their route holds.
	//
	// Change it to get mail through to a domain whose policy is broken and that you trust all the same.
	Ignore []string `yaml:"ignore"`
}

// TLSReports are the daily reports of RFC 8460 on how TLS went, to the domains that ask for them (TXT records of _smtp._tls).
type TLSReports struct {
	// Enabled counts sessions by domain, over all workers of the cluster, and sends the reports of each UTC day within hours after it.
	// They are mail of postmaster@domain, signed with its keys, or posted by HTTPS.
	//
	// Change it to true to be a good neighbour: receivers find faults of theirs by what senders report.
	Enabled bool `yaml:"enabled"`

	// Contact is the address for questions about reports. Empty takes postmaster@ and the domain.
	Contact string `yaml:"contact"`

	// Organization is the name of who reports. Empty takes the domain.
	Organization string `yaml:"organization"`
}

func (c *Config) checkTLS(f *faults) {
	r := &c.Delivery.TLSReports
	if r.Contact != "" {
		if p, err := address.Parse(r.Contact); err != nil || p.IsNull() {
			f.add("delivery.tls_reports.contact", "%q is no address", r.Contact)
		}
	}
	if strings.ContainsFunc(r.Organization, func(c rune) bool { return c < ' ' || c > '~' }) || len(r.Organization) > 200 {
		f.add("delivery.tls_reports.organization", "%q is not up to 200 characters of plain ASCII", r.Organization)
	}
	for i, domain := range c.Delivery.TLSPolicies.Ignore {
		if name, err := address.Normalize(domain); err != nil || address.IsLiteral(name) {
			f.add("delivery.tls_policies.ignore["+strconv.Itoa(i)+"]", "%q is no domain name", domain)
		}
	}
}

// QueueTLS is TLS towards an outside queue.
type QueueTLS struct {
	// CA is a file of PEM certificates that the servers' certificates must chain to. Empty takes the system's.
	//
	// Change it when the queue has certificates of a private authority.
	CA string `yaml:"ca" kind:"file"`

	// Cert is the PEM certificate by which this process shows who it is.
	//
	// Change it when the queue asks for client certificates; key is then needed too.
	Cert string `yaml:"cert" kind:"file"`

	// Key is the private key of cert. It must not be readable by others.
	Key string `yaml:"key" kind:"file"`
}

// Certificate is a certificate with its key: two files, a secret, or one that Vault issues.
type Certificate struct {
	// Secret is the name of a secret with both, tls/NAME: in Vault it has the fields certificate and private_key, in a directory the files
	// cert.pem and key.pem. A new one is in force within seconds.
	Secret string `yaml:"secret"`

	// Cert is the PEM certificate chain that clients see.
	Cert string `yaml:"cert" kind:"file"`

	// Key is its private key. It must not be readable by others.
	Key string `yaml:"key" kind:"file"`

	// PKI is a role of the PKI engine secrets.vault.pki. Each process makes a key, has Vault issue a certificate for it, keeps both in memory
	// only, and renews them at two thirds of the certificate's life.
	//
	// Change it to have no certificates to look after, when your clients trust the authority in Vault.
	PKI string `yaml:"pki"`

	// Names are what the certificate is for, with pki. Empty takes hostname.
	//
	// Change it when clients know this machine, or the balancer in front of it, by other names; the role must allow them.
	Names []string `yaml:"names"`

	// TTL is how long the certificate lives, with pki. 0 leaves it to the role.
	//
	// Change it to have shorter lives than the role's, at least a minute. Vault must not be away for the last third of it.
	TTL time.Duration `yaml:"ttl"`
}
