package config

import (
	"cmp"
	"errors"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"postroad/queue/address"
)

// sorted brings faults into the order of the file.
func sorted(e Errors) Errors {
	slices.SortStableFunc(e, func(a, b Error) int { return cmp.Compare(a.Line, b.Line) })
	return e
}

// check finds what is wrong with the values. What the decoder already complained about has its default, so it is not
// reported again.
func (c *Config) check() Errors {
	f := &faults{source: c.source}
	c.checkIdentity(f)
	c.checkQueue(f)
	c.checkIngress(f)
	c.checkSigner(f)
	c.checkRotation(f)
	c.checkSecrets(f)
	c.checkDelivery(f)
	c.checkBounces(f)
	c.checkTLS(f)
	if c.Ops.Address != "" {
		checkAddress(f, "ops.address", c.Ops.Address)
	}
	return f.list
}

// Check finds what is wrong with the values of a configuration that was not read from a file.
func (c *Config) Check() error {
	if list := c.check(); len(list) > 0 {
		return list
	}
	return nil
}

func (c *Config) checkIdentity(f *faults) {
	for _, name := range []struct{ setting, value string }{{"hostname", c.Hostname}, {"domain", c.Domain}} {
		if name.value == "" {
			continue
		}
		if _, err := address.Normalize(name.value); err != nil || address.IsLiteral(name.value) {
			f.add(name.setting, "%q is no domain name: write a name such as relay.example.com", name.value)
		}
	}
	if c.DataDir == "" {
		f.add("data_dir", "must not be empty")
	}
	if len(c.Roles) == 0 {
		f.add("roles", "is empty: name at least one of %s, or remove the line for all of them", strings.Join(words(AllRoles()), ", "))
	}
	for i, r := range c.Roles {
		if slices.Index(c.Roles, r) < i {
			f.add("roles["+strconv.Itoa(i)+"]", "%s is there twice", r)
		}
	}
}

func (c *Config) checkQueue(f *faults) {
	q := &c.Queue
	if q.Listen != "" {
		checkAddress(f, "queue.listen", q.Listen)
	}
	for i, u := range q.URLs {
		checkURL(f, "queue.urls["+strconv.Itoa(i)+"]", u, "nats://127.0.0.1:4222", "nats", "tls")
	}
	for i, u := range q.Monitor {
		checkURL(f, "queue.monitor["+strconv.Itoa(i)+"]", u, "http://127.0.0.1:8222", "http", "https")
	}
	outside := len(q.URLs) > 0
	switch {
	case outside && q.Listen != "":
		f.add("queue.listen", "the embedded queue listens, but queue.urls names one outside: remove one of the two")
	case !outside && len(q.Monitor) > 0:
		f.add("queue.monitor", "speaks of the servers in queue.urls, which is empty: give urls or remove monitor")
	case !outside && q.Credentials != "":
		f.add("queue.credentials", "is for queue.urls, which is empty: give urls or remove credentials")
	case !outside && len(c.Roles) > 0 && !c.HasRole(RoleQueue):
		f.add("roles", "without the role queue this process needs queue.urls to find one: add queue to the roles, or give urls")
	}
	if strings.ContainsAny(q.Inbox, " \t*>") || slices.Contains(strings.Split(q.Inbox, "."), "") {
		f.add("queue.inbox", "%q is no prefix of a NATS subject: write words with dots between them, such as _INBOX_signer", q.Inbox)
	}
	if !q.Manage && !outside {
		f.add("queue.manage", "nobody else can manage the embedded queue: remove the line, or give queue.urls")
	}
	if (q.TLS.Cert == "") != (q.TLS.Key == "") {
		f.add("queue.tls", "cert and key belong together: give both or none")
	}
	if q.Replicas != 1 && q.Replicas != 3 {
		f.add("queue.replicas", "%d is neither 1 nor 3", q.Replicas)
	} else if q.Replicas == 3 && !outside {
		f.add("queue.replicas", "the embedded queue is one server and cannot hold 3 replicas: give queue.urls, or write 1")
	}
	if q.MaxBytes < 64<<20 {
		f.add("queue.max_bytes", "%s is too little: at least 64MiB", q.MaxBytes)
	} else if q.MaxBytes < 2*c.Ingress.MaxMessage {
		f.add("queue.max_bytes", "%s is less than two messages of ingress.max_message (%s): raise it, or lower that", q.MaxBytes, c.Ingress.MaxMessage)
	}
}

func (c *Config) checkIngress(f *faults) {
	in := &c.Ingress
	if c.HasRole(RoleIngress) && len(in.Listeners) == 0 {
		f.add("ingress.listeners", "is empty: the role ingress needs at least one listener")
	}
	seen := make(map[string]string)
	for i := range in.Listeners {
		l, setting := &in.Listeners[i], "ingress.listeners["+strconv.Itoa(i)+"]"
		if strings.HasPrefix(l.Address, SystemdPrefix) || checkAddress(f, setting+".address", l.Address) {
			if other, ok := seen[l.Address]; ok && !strings.HasSuffix(l.Address, ":0") {
				f.add(setting+".address", "%s is the address of %s too", l.Address, other)
			}
			seen[l.Address] = setting
		}
		checkListener(f, setting, l)
	}
	checkClasses(f, in.Classes)
	for i, r := range in.AllowedRecipients {
		if !isPattern(r) {
			f.add("ingress.allowed_recipients["+strconv.Itoa(i)+"]", "%q is none of user@example.com, @example.com and .example.com", r)
		}
	}
	if d := in.Rewrite.RecipientDelimiter; len(d) > 1 || strings.ContainsAny(d, "@.%!\" \\") {
		f.add("ingress.rewrite.recipient_delimiter", "%q is not one character such as +", d)
	}
	if in.ConnectionRate < 0 {
		f.add("ingress.connection_rate", "%d is less than 0: write 0 for any number", in.ConnectionRate)
	}
	atLeastOne(f, "ingress.login_failures", in.LoginFailures)
	atLeastOne(f, "ingress.ban_after", in.BanAfter)
	between(f, "ingress.ban_time", in.BanTime, time.Second, 7*24*time.Hour)
	between(f, "ingress.repeat_window", in.RepeatWindow, time.Minute, 24*time.Hour)
	if in.MaxMessage < 64<<10 {
		f.add("ingress.max_message", "%s is too little: RFC 5321 §4.5.3.1.7 wants at least 64KiB", in.MaxMessage)
	}
	if in.MaxRecipients < 100 {
		f.add("ingress.max_recipients", "%d is too few: RFC 5321 §4.5.3.1.8 wants at least 100", in.MaxRecipients)
	}
	atLeastOne(f, "ingress.max_connections", in.MaxConnections)
	atLeastOne(f, "ingress.max_client_connections", in.MaxClientConnections)
	between(f, "ingress.idle_timeout", in.IdleTimeout, time.Second, time.Hour)
}

// SystemdPrefix begins the address of a listener whose socket systemd has opened.
const SystemdPrefix = "systemd:"

func checkListener(f *faults, setting string, l *Listener) {
	for j, trusted := range l.TrustedNetworks {
		name := setting + ".trusted_networks[" + strconv.Itoa(j) + "]"
		if trusted.IsValid() && trusted.Bits() == 0 {
			f.add(name, "%s is everybody, which makes an open relay: name your own networks", trusted)
		}
		for _, balancer := range l.ProxyNetworks {
			if trusted.Overlaps(balancer) {
				f.add(name, "%s holds the load balancer %s, which makes an open relay: trust the networks of the clients, which the PROXY header names", trusted, balancer)
			}
		}
	}
	given := l.Cert != "" || l.Key != "" || len(l.Certificates) > 0
	switch {
	case l.TLS == TLSNone && given:
		f.add(setting, "certificates are not used with tls: none: write tls: starttls or tls: implicit, or remove them")
	case (l.Cert == "") != (l.Key == ""), l.TLS != TLSNone && !given:
		f.add(setting, "tls: %s needs cert and key", l.TLS)
	}
	for j, pair := range l.Certificates {
		name := setting + ".certificates[" + strconv.Itoa(j) + "]"
		switch {
		case pair.Secret != "" && (pair.Cert != "" || pair.Key != ""):
			f.add(name, "has a secret and files: take one of them away")
		case pair.PKI != "" && (pair.Secret != "" || pair.Cert != "" || pair.Key != ""):
			f.add(name, "has a pki and a secret or files: take one of them away")
		case pair.PKI == "" && pair.Secret == "" && (pair.Cert == "" || pair.Key == ""):
			f.add(name, "cert and key belong together: give both, or a secret, or a pki")
		case strings.ContainsAny(pair.Secret, "/\\") || strings.HasPrefix(pair.Secret, "."):
			f.add(name+".secret", "%q is no name of a secret below tls/", pair.Secret)
		}
		checkIssued(f, name, &pair)
	}
	switch {
	case l.Auth != AuthNone && l.TLS == TLSNone && !l.AuthInClear:
		f.add(setting+".auth", "clients log in under TLS only: write tls: starttls or tls: implicit, or auth_in_clear: true if passwords may be read on the way")
	case l.TLS == TLSNone && (l.ClientCA != "" || l.AskCertificate):
		f.add(setting, "clients show certificates under TLS only: write tls: starttls or tls: implicit, or remove client_ca and ask_certificate")
	}
	if l.MaxConnections < 0 || l.MaxClientConnections < 0 {
		f.add(setting, "a number of connections is less than 0")
	}
	if strings.ContainsFunc(l.Banner, func(r rune) bool { return r < ' ' || r > '~' }) || len(l.Banner) > 200 {
		f.add(setting+".banner", "is not one line of at most 200 ASCII characters")
	}
}

// checkIssued looks at what is for certificates that Vault issues.
func checkIssued(f *faults, name string, c *Certificate) {
	switch {
	case c.PKI == "" && (len(c.Names) > 0 || c.TTL != 0):
		f.add(name, "names and ttl are for a certificate that Vault issues: give a pki, or take them away")
	case strings.ContainsAny(c.PKI, "/\\") || strings.HasPrefix(c.PKI, "."):
		f.add(name+".pki", "%q is no name of a role", c.PKI)
	}
	for k, host := range c.Names {
		if clean, err := address.Normalize(strings.TrimPrefix(host, "*.")); err != nil || address.IsLiteral(clean) {
			f.add(name+".names["+strconv.Itoa(k)+"]", "%q is no name of a host", host)
		}
	}
	if c.TTL != 0 {
		between(f, name+".ttl", c.TTL, time.Minute, 5*365*24*time.Hour)
	}
}

func checkClasses(f *faults, classes []ClientClass) {
	for i, c := range classes {
		setting := "ingress.classes[" + strconv.Itoa(i) + "]"
		if c.Name == "" {
			f.add(setting, "has no name: write that of a class of accounts, network, or default")
		}
		if slices.ContainsFunc(classes[:i], func(other ClientClass) bool { return other.Name == c.Name }) {
			f.add(setting+".name", "%s is there twice", c.Name)
		}
		if c.ClientRecipients < 0 || c.ClassRecipients < 0 {
			f.add(setting, "a limit is less than 0: write 0 for none")
		}
		between(f, setting+".client_window", c.ClientWindow, time.Second, 7*24*time.Hour)
		between(f, setting+".class_window", c.ClassWindow, time.Second, 7*24*time.Hour)
		between(f, setting+".max_hold", c.MaxHold, 0, 365*24*time.Hour)
	}
}

// isPattern takes an address, @domain or .domain.
func isPattern(s string) bool {
	if domain := strings.TrimPrefix(strings.TrimPrefix(s, "@"), "."); domain != s {
		_, err := address.Normalize(domain)
		return err == nil
	}
	p, err := address.Parse(s)
	return err == nil && !p.IsNull()
}

func (c *Config) checkSigner(f *faults) {
	atLeastOne(f, "signer.window", c.Signer.Window)
	if e := c.Signer.Expiry; e != 0 && e < 24*time.Hour {
		f.add("signer.expiry", "%s is shorter than mail may be on its way: at least 24h, or 0s for signatures that do not expire", formatDuration(e))
	}
	c.checkDomains(f)
}

func (c *Config) checkRotation(f *faults) {
	r := &c.Signer.Rotation
	between(f, "signer.rotation.every", r.Every, 0, 5*365*24*time.Hour)
	if r.CheckEvery != 0 {
		between(f, "signer.rotation.check_every", r.CheckEvery, time.Minute, 7*24*time.Hour)
	}
	between(f, "signer.rotation.overlap", r.Overlap, 0, 365*24*time.Hour)
	between(f, "signer.rotation.update_ttl", r.UpdateTTL, time.Second, 24*time.Hour)
	if r.UpdateTTL%time.Second != 0 {
		f.add("signer.rotation.update_ttl", "%s is no number of whole seconds, which is what the DNS counts in", formatDuration(r.UpdateTTL))
	}
	for i, address := range r.Resolvers {
		if _, err := netip.ParseAddrPort(address); err != nil {
			f.add("signer.rotation.resolvers["+strconv.Itoa(i)+"]", "%q is no resolver: write address and port, such as 9.9.9.9:53", address)
		}
	}
	if r.NameServerPort < 1 || r.NameServerPort > 65535 {
		f.add("signer.rotation.name_server_port", "%d is no port", r.NameServerPort)
	}
	if (r.UpdateServer == "") != (r.UpdateZone == "") || (r.UpdateServer == "") != (r.UpdateKey == "") {
		f.add("signer.rotation", "has one of update_server, update_zone and update_key and not the others: dynamic updates need all three")
	}
	if r.UpdateServer != "" && len(r.Hook) > 0 {
		f.add("signer.rotation.hook", "is given beside update_server: one of them publishes records, take the other away")
	}
}

func (c *Config) checkSecrets(f *faults) {
	v := &c.Secrets.Vault
	if v.Address == "" {
		for i, l := range c.Ingress.Listeners {
			for j, pair := range l.Certificates {
				if pair.PKI != "" {
					f.add("ingress.listeners["+strconv.Itoa(i)+"].certificates["+strconv.Itoa(j)+"].pki", "needs Vault: set secrets.vault.address")
				}
			}
		}
		return
	}
	if c.Secrets.Dir != "" {
		f.add("secrets.dir", "is given beside secrets.vault.address: secrets are in one place, take one of them away")
	}
	if u, err := url.Parse(v.Address); err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || strings.Trim(u.Path, "/") != "" {
		f.add("secrets.vault.address", "%q is no address of Vault: write it as https://vault.example.com:8200", v.Address)
	}
	for setting, path := range map[string]string{"mount": v.Mount, "prefix": v.Prefix, "transit": v.Transit, "pki": v.PKI} {
		if strings.Trim(path, "/") == "" || strings.Contains(path, "..") {
			f.add("secrets.vault."+setting, "%q is no path in Vault: write it as team/mail", path)
		}
	}
	need := func(setting, value string) {
		if value == "" {
			f.add("secrets.vault."+setting, "is missing, and secrets.vault.login: %s needs it", v.Login)
		}
	}
	switch v.Login {
	case VaultAppRole, VaultKubernetes:
		need("role", v.Role)
	case VaultCert:
		need("cert", v.Cert)
		need("key", v.Key)
	case VaultToken:
		need("secret_file", v.SecretFile)
	}
	if v.Wrapped && (v.Login != VaultAppRole || v.SecretFile == "") {
		f.add("secrets.vault.wrapped", "is for secrets.vault.login: approle with a secret_file")
	}
}

func (c *Config) checkDelivery(f *faults) {
	d := &c.Delivery
	checkRoutes(f, "delivery.routes", d.Routes, nil)
	c.checkRetry(f)
	c.checkSuppress(f)
	c.checkBounceLimit(f)
	if d.DelayNotice >= d.MaxAge && d.DelayNotice != 0 {
		f.add("delivery.delay_notice", "%s is not before delivery.max_age (%s): no notice would ever be sent; lower it, or write 0s for none",
			formatDuration(d.DelayNotice), formatDuration(d.MaxAge))
	}
	atLeastOne(f, "delivery.site_connections", d.SiteConnections)
	atLeastOne(f, "delivery.window", d.Window)
	d.checkShaping(f)
	d.checkReactions(f)
	if d.LocalAddress != "" {
		if _, err := netip.ParseAddr(d.LocalAddress); err != nil {
			f.add("delivery.local_address", "%q is no IP address", d.LocalAddress)
		}
	}
	d.checkSources(f)
	d.checkNames(f)
	for i, r := range d.Resolvers {
		if _, err := netip.ParseAddr(r); err != nil {
			if _, err := netip.ParseAddrPort(r); err != nil {
				f.add("delivery.resolvers["+strconv.Itoa(i)+"]", "%q is no IP address, with or without a port", r)
			}
		}
	}
}

func atLeastOne(f *faults, setting string, n int) {
	if n < 1 {
		f.add(setting, "%d is too little: at least 1", n)
	}
}

func between(f *faults, setting string, d, least, most time.Duration) {
	if d < least || d > most {
		f.add(setting, "%s is out of range: %s to %s", formatDuration(d), formatDuration(least), formatDuration(most))
	}
}

// checkAddress wants host:port to listen on.
func checkAddress(f *faults, setting, value string) bool {
	host, port, err := net.SplitHostPort(value)
	if err == nil {
		if n, portErr := strconv.Atoi(port); portErr != nil || n < 0 || n > 65535 {
			err = errors.New("port")
		}
	}
	if err != nil || strings.ContainsAny(host, " /") {
		f.add(setting, "%q is no address to listen on: write host:port, such as 127.0.0.1:2525, or :2525 for all addresses", value)
		return false
	}
	return true
}

func checkURL(f *faults, setting, value, example string, schemes ...string) {
	u, err := url.Parse(value)
	if err != nil || !slices.Contains(schemes, u.Scheme) || u.Host == "" {
		f.add(setting, "%q is no address of a queue server: write it as %s", value, example)
		return
	}
	if u.User != nil {
		f.add(setting, "holds a login: put it into queue.credentials, which others cannot read")
	}
}

// CheckFiles looks at the files that the settings name: they must be there and readable, and private keys must not be
// readable by others.
func (c *Config) CheckFiles() error {
	f := &faults{source: c.source}
	checkFile(f, "queue.credentials", c.Queue.Credentials, true)
	checkFile(f, "queue.tls.ca", c.Queue.TLS.CA, false)
	checkFile(f, "queue.tls.cert", c.Queue.TLS.Cert, false)
	checkFile(f, "queue.tls.key", c.Queue.TLS.Key, true)
	for i, l := range c.Ingress.Listeners {
		setting := "ingress.listeners[" + strconv.Itoa(i) + "]"
		checkFile(f, setting+".cert", l.Cert, false)
		checkFile(f, setting+".key", l.Key, true)
		checkFile(f, setting+".client_ca", l.ClientCA, false)
		for j, pair := range l.Certificates {
			checkFile(f, setting+".certificates["+strconv.Itoa(j)+"].cert", pair.Cert, false)
			checkFile(f, setting+".certificates["+strconv.Itoa(j)+"].key", pair.Key, true)
		}
	}
	checkFile(f, "ingress.rewrite.rules", c.Ingress.Rewrite.Rules, false)
	checkFile(f, "ingress.rewrite.aliases", c.Ingress.Rewrite.Aliases, false)
	c.checkRoutesFile(f)
	checkFile(f, "signer.rotation.update_key", c.Signer.Rotation.UpdateKey, true)
	checkFile(f, "secrets.vault.ca", c.Secrets.Vault.CA, false)
	checkFile(f, "secrets.vault.cert", c.Secrets.Vault.Cert, false)
	checkFile(f, "secrets.vault.key", c.Secrets.Vault.Key, true)
	if c.Secrets.Vault.Login != VaultKubernetes {
		checkFile(f, "secrets.vault.secret_file", c.Secrets.Vault.SecretFile, true)
	}
	if c.Secrets.Dir != "" {
		if info, err := os.Stat(c.Secrets.Dir); err != nil {
			f.add("secrets.dir", "%v: make the directory, or correct the path", err)
		} else if !info.IsDir() {
			f.add("secrets.dir", "%s is no directory", c.Secrets.Dir)
		}
	}
	if len(f.list) > 0 {
		return sorted(f.list)
	}
	return nil
}

// checkRoutesFile reads the files of routes; faults of the one that holds them have their lines in it.
func (c *Config) checkRoutesFile(f *faults) {
	setting := "delivery.routes"
	if c.Delivery.RoutesFile != "" {
		setting = "delivery.routes_file"
	}
	_, err := c.Delivery.LoadRoutes()
	if list, is := errors.AsType[Errors](err); is {
		f.list = append(f.list, list...)
	} else if err != nil {
		f.add(setting, "%v", err)
	}
}

func checkFile(f *faults, setting, path string, private bool) {
	if path == "" {
		return
	}
	file, err := os.Open(path)
	if err != nil {
		f.add(setting, "%v", err)
		return
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	switch {
	case err != nil:
		f.add(setting, "%v", err)
	case !info.Mode().IsRegular():
		f.add(setting, "%s is no file", path)
	case private && info.Mode().Perm()&0o077 != 0:
		f.add(setting, "%s has mode %04o, so others can read it: chmod 0600 it", path, info.Mode().Perm())
	}
}
