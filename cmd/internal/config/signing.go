package config

import (
	"cmp"
	"strconv"
	"time"

	"postroad/queue/address"
	"postroad/signer"
)

// SigningDomain says how mail of some domains of authors is signed.
type SigningDomain struct {
	// Names are example.com for that domain, .example.com for every domain below it. The most specific name of all entries holds.
	Names []string `yaml:"names"`

	// Clients are those whose mail may bear a signature of these domains: accounts by name, class:NAME for all accounts of a class
	// (class:default: those without one; class:network: every trusted network), or a trusted network such as 10.0.0.0/8. Empty: everybody
	// from whom ingress takes it. It also holds where such a domain would sign as the parent of another, or as the relay.
	//
	// Change it for domains whose name not every client may have: hosts in a trusted network can write anything into From.
	Clients []string `yaml:"clients"`

	// Others is what happens to mail of clients that are not among clients: pass sends it unsigned, relay with a signature of domain only
	// (unsigned, if receivers take that for the same organisation), hold keeps it in the queue, where an operator sees it, and returns it to
	// its sender after delivery.max_age.
	Others Others `yaml:"others"`

	// MissingKey is what happens when these domains have no key, as in signer.missing_key. Not given: what stands there.
	MissingKey MissingKey `yaml:"missing_key"`

	// AllowParent is signer.allow_parent for these domains. Not given: what stands there.
	AllowParent bool `yaml:"allow_parent"`

	// RelaySignature is signer.relay_signature for these domains. Not given: what stands there.
	RelaySignature bool `yaml:"relay_signature"`

	// OnlyUnsigned lets mail that bears a DKIM-Signature already, whosever it is, pass as it is.
	//
	// Change it to true when some programs sign their mail themselves.
	OnlyUnsigned bool `yaml:"only_unsigned"`
}

// Others is what happens to mail of clients that may not have it signed.
type Others string

// The policies for others.
const (
	OthersPass  Others = "pass"
	OthersRelay Others = "relay"
	OthersHold  Others = "hold"
)

func (Others) choices() []string { return words([]Others{OthersPass, OthersRelay, OthersHold}) }

func defaultSigningDomain() SigningDomain {
	return SigningDomain{Others: OthersPass, MissingKey: MissingHold}
}

// inherit gives the domains what stands in the section around them.
func (s *Signer) inherit(from *source) {
	for i := range s.Domains {
		d, setting := &s.Domains[i], domainSetting(i)
		if !from.given(setting + ".missing_key") {
			d.MissingKey = s.MissingKey
		}
		if !from.given(setting + ".allow_parent") {
			d.AllowParent = s.AllowParent
		}
		if !from.given(setting + ".relay_signature") {
			d.RelaySignature = s.RelaySignature
		}
	}
}

func domainSetting(i int) string { return "signer.domains[" + strconv.Itoa(i) + "]" }

func (c *Config) checkDomains(f *faults) {
	c.checkRelay(f)
	own, _ := address.Normalize(c.Domain)
	seen := make(map[string]string)
	for i, d := range c.Signer.Domains {
		setting := domainSetting(i)
		if len(d.Names) == 0 {
			f.add(setting, "has no names: give at least one, such as example.com or .example.com")
		}
		for j, given := range d.Names {
			at := setting + ".names[" + strconv.Itoa(j) + "]"
			name, err := signer.CleanName(given)
			switch {
			case err != nil:
				f.add(at, "%v", err)
				continue
			case seen[name] != "":
				f.add(at, "%s is in %s too: remove one of the two", given, seen[name])
			case d.Others == OthersRelay && len(d.Clients) > 0 && signer.Aligned(trimDot(name), own):
				f.add(at, "%s and %s (domain) are one organisation to receivers, so that mail of others would pass for it all the same: write others: pass or hold",
					given, own)
			}
			seen[name] = setting
		}
		if d.Others != OthersPass && len(d.Clients) == 0 {
			f.add(setting+".others", "has nobody to be for: clients is empty, so everybody may; name clients, or remove others")
		}
		for j, word := range d.Clients {
			c.checkClient(f, setting+".clients["+strconv.Itoa(j)+"]", word)
		}
	}
}

func trimDot(name string) string {
	if name != "" && name[0] == '.' {
		return name[1:]
	}
	return name
}

// checkClient also finds networks that mail never comes under the name of.
func (c *Config) checkClient(f *faults, setting, word string) {
	if err := signer.CheckClient(word); err != nil {
		f.add(setting, "%v", err)
		return
	}
	network := signer.Network(word)
	if !network.IsValid() || !c.HasRole(RoleIngress) {
		return
	}
	for _, l := range c.Ingress.Listeners {
		for _, trusted := range l.TrustedNetworks {
			if network.Bits() > trusted.Bits() && trusted.Contains(network.Addr()) && !c.trusts(network.String()) {
				f.add(setting, "mail from %s comes in the name of the trusted network %s around it: write that, or put %s before it among trusted_networks",
					network, trusted, network)
				return
			}
		}
	}
}

func (c *Config) trusts(network string) bool {
	for _, l := range c.Ingress.Listeners {
		for _, trusted := range l.TrustedNetworks {
			if trusted.String() == network {
				return true
			}
		}
	}
	return false
}

// checkRelay wants the name that a signature of the relay is made for to be given: the name of a machine is no promise.
func (c *Config) checkRelay(f *faults) {
	if c.Domain != "" {
		return
	}
	wants := func(setting string) {
		f.add(setting, "the relay's signature is that of domain, which is not given: write domain: relay.example.com, or what you own")
	}
	s := &c.Signer
	if s.MissingKey == MissingRelay {
		wants("signer.missing_key")
		return
	}
	if s.RelaySignature {
		wants("signer.relay_signature")
		return
	}
	for i, d := range s.Domains {
		for _, one := range []struct {
			setting string
			relay   bool
		}{{"others", d.Others == OthersRelay}, {"missing_key", d.MissingKey == MissingRelay}, {"relay_signature", d.RelaySignature}} {
			if one.relay {
				wants(domainSetting(i) + "." + one.setting)
			}
		}
	}
}

// SignerOptions are the rules of the signer in its own words; own is the domain that this relay speaks for.
func (c *Config) SignerOptions(own string) signer.Options {
	s := &c.Signer
	o := signer.Options{OwnDomain: own, MissingKey: signer.Policy(s.MissingKey), AllowParent: s.AllowParent, RelaySignature: s.RelaySignature}
	for _, d := range s.Domains {
		o.Domains = append(o.Domains, signer.Domain{
			Names:          d.Names,
			Clients:        d.Clients,
			Others:         signer.Policy(d.Others),
			MissingKey:     signer.Policy(cmp.Or(d.MissingKey, s.MissingKey)),
			AllowParent:    d.AllowParent,
			RelaySignature: d.RelaySignature,
			OnlyUnsigned:   d.OnlyUnsigned,
		})
	}
	return o
}

// Rotation is how DKIM keys live.
type Rotation struct {
	// Automatic lets the signers do it by themselves, one of them at a time: new keys are published, begin to sign when the DNS has them, replace
	// old ones that are due by every, and old ones end. With neither a hook nor an update_server somebody has to publish records, which
	// the log and the status ask for.
	//
	// Change it to true when signers may write keys: in a directory they share, or in Vault with the policy of deploy/vault/signer-rotation.hcl.
	// Otherwise let a timer run dkim rotate --due.
	Automatic bool `yaml:"automatic"`

	// CheckEvery is how often the records of the keys that sign are looked up. One that is wrong or missing is told in the log, the status
	// and the metrics; nothing is changed by it. One signer does it for all. 0 never looks.
	CheckEvery time.Duration `yaml:"check_every"`

	// Selector is the template of new selectors: {algo} stands for rsa or ed25519, {yyyymm} for the month. A selector is never used twice: -2,
	// -3 and so on follow.
	Selector string `yaml:"selector"`

	// Every is the age at which keys are replaced. 0 replaces them only when dkim rotate says so.
	Every time.Duration `yaml:"every"`

	// KeepSpare keeps a pair of keys published that does not sign yet, for the day on which one is compromised.
	KeepSpare bool `yaml:"keep_spare"`

	// Overlap is how long the record of an old key stays after its last signature. 0 takes delivery.max_age and 7 days.
	Overlap time.Duration `yaml:"overlap"`

	// Resolvers are asked for records, beside the name servers of the zone: host:port, at least two. Empty takes those of this machine, as many as
	// there are.
	//
	// Change it to resolvers outside of your network, which see what receivers see.
	Resolvers []string `yaml:"resolvers"`

	// NameServerPort is where name servers of zones are asked. It is for tests.
	NameServerPort int `yaml:"name_server_port"`

	// Hook is a program with arguments that publishes a record; it gets add, revoke or delete, the name and the value as further arguments.
	Hook []string `yaml:"hook"`

	// UpdateServer is the primary name server that takes dynamic updates (RFC 2136), host or host:port, in place of a hook.
	UpdateServer string `yaml:"update_server"`

	// UpdateZone is the zone that it is asked to change.
	UpdateZone string `yaml:"update_zone"`

	// UpdateKey is a file with its TSIG key, as tsig-keygen writes it, with mode 0600.
	UpdateKey string `yaml:"update_key" kind:"file"`

	// UpdateTTL is the TTL of records that are published by update_server. A new key waits until it, and the negative TTL of the zone, are over
	// before it signs.
	UpdateTTL time.Duration `yaml:"update_ttl"`
}
