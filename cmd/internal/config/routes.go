package config

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"postroad/delivery/route"
	"postroad/delivery/smtpc"
)

// Route sends some mail somewhere. All of its conditions must hold: domains, senders, clients and classes.
type Route struct {
	// Name tells it from others in what people read: explain, the log, discarded mail. Empty: it is known by its conditions.
	Name string `yaml:"name"`

	// Domains are the recipients' domains: example.com, .example.com (every domain below it), /mail[0-9]+\.example\.com/ (a pattern that must
	// match the whole domain, in the syntax of RE2) or * (every domain that no other route takes).
	Domains []string `yaml:"domains"`

	// Senders are reverse-paths, as they are after rewriting: user@example.com, @example.com, .example.com for every domain below it, or <>
	// for notifications. Empty: any.
	//
	// Change it to send the mail of some senders by another way.
	Senders []string `yaml:"senders"`

	// Clients are accounts, or trusted networks as net:10.0.0.0/8. Empty: any.
	Clients []string `yaml:"clients"`

	// Classes are classes of clients. Empty: any.
	Classes []string `yaml:"classes"`

	// Via is mx (the MX hosts of the recipient's domain), mx:DOMAIN (those of another domain), smtp:[host]:port (that host), smtps:[host]:port (that host, with TLS from the first octet; without a port 465), error:CODE X.Y.Z
	// text (nobody is asked: with 4xx the mail waits, with 5xx it returns to its sender), or discard (it is accepted and thrown away; only the
	// trace tells). Several hosts, separated by commas, are tried in order; with a bar between them they are equals, of which each
	// attempt that opens a connection draws one: smtp:[a]:25*3|smtp:[b]:25,smtp:[c]:25 takes a three times as often as b, and c when neither
	// answers.
	Via string `yaml:"via"`

	// TLS is none (never), opportunistic (when offered, certificate not checked), encrypt (always, certificate not checked) or verify
	// (always, with a certificate that is valid for the host). With smtps it is encrypt at least.
	//
	// Change it to verify for a smart host, so that nobody on the way can strip the encryption.
	TLS RouteTLS `yaml:"tls"`

	// CA is a file of PEM certificates of authorities that may vouch for the host, for tls: verify. It is read again when it changes. Empty:
	// those of the system.
	//
	// Change it for a host whose certificate comes from an authority of your own.
	CA string `yaml:"ca" kind:"file"`

	// Auth is the name of a secret smarthosts/NAME with the user name and password to log in with. Until it can be had, and while the host
	// refuses it, mail waits: it never leaves without the login. Empty does not log in.
	//
	// Change it for a smart host that asks for a login; tls: verify is needed too.
	Auth string `yaml:"auth"`

	// AuthInsecure logs in also where TLS has not proved who the host is: whoever is on the way can then have the password.
	AuthInsecure bool `yaml:"auth_insecure"`

	// ClientCert is the name of a secret tls/NAME, whose certificate is shown to hosts that ask for one. Until it can be had, mail waits.
	// The policy of deploy/vault lets delivery read names that begin with client-.
	//
	// Change it for a next hop that knows its clients by certificate; tls: encrypt or verify is needed too.
	ClientCert string `yaml:"client_cert"`

	// Source is the pool of egress sources that connections come from, or system: the operating system chooses. Empty: delivery.pool.
	Source string `yaml:"source"`

	// VERP is that of classes, for mail that goes this way.
	VERP bool `yaml:"verp"`

	// AllowPrivate permits next hops on loopback and private addresses. Otherwise a domain whose DNS points there is treated as broken.
	//
	// Change it for a next hop inside your network.
	AllowPrivate bool `yaml:"allow_private"`
}

// tlsModes are the modes of package smtpc for the words of the configuration.
func tlsModes() map[RouteTLS]smtpc.TLSMode {
	return map[RouteTLS]smtpc.TLSMode{
		RouteTLSNone:          smtpc.TLSNone,
		RouteTLSOpportunistic: smtpc.TLSMay,
		RouteTLSEncrypt:       smtpc.TLSEncrypt,
		RouteTLSVerify:        smtpc.TLSVerify,
	}
}

// RouteTLSOf is the word for a mode.
func RouteTLSOf(mode smtpc.TLSMode) RouteTLS {
	for word, m := range tlsModes() {
		if m == mode {
			return word
		}
	}
	return ""
}

// routeOf is what all domains of a route have in common.
func (r *Route) routeOf() (route.Route, error) {
	hop, err := route.ParseNextHop(r.Via)
	if err != nil {
		return route.Route{}, err
	}
	mode, ok := tlsModes()[r.TLS]
	if !ok {
		return route.Route{}, fmt.Errorf("unknown mode %q of tls", r.TLS)
	}
	if hop.IsTLS() {
		mode = max(mode, smtpc.TLSEncrypt)
	}
	return route.Route{Name: r.Name, Senders: r.Senders, Clients: r.Clients, Classes: r.Classes, NextHop: hop, TLS: &mode,
		AllowPrivate: r.AllowPrivate, Auth: r.Auth, AuthInsecure: r.AuthInsecure, ClientCert: r.ClientCert, Source: r.Source, VERP: r.VERP}, nil
}

// routeTable is the table that routes make, one for each of their domains; nothing may be wrong with them but their files.
func routeTable(list []Route) (route.Table, error) {
	var routes []route.Route
	authorities := make(map[string]*route.CA)
	for i := range list {
		r, err := list[i].routeOf()
		if err != nil {
			return route.Table{}, fmt.Errorf("route %d: %w", i, err)
		}
		if file := list[i].CA; file != "" {
			if authorities[file] == nil {
				if authorities[file], err = readCA(file); err != nil {
					return route.Table{}, fmt.Errorf("ca of the route for %s: %w", strings.Join(list[i].Domains, ", "), err)
				}
			}
			r.CA = authorities[file]
		}
		for _, domain := range list[i].Domains {
			r.Match = domain
			routes = append(routes, r)
		}
	}
	return route.NewTable(routes)
}

// readCA reads a file of authorities.
func readCA(file string) (*route.CA, error) {
	text, err := ReadRoutes(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s holds no PEM certificate", file)
	}
	return &route.CA{File: file, Pool: pool, Sum: fmt.Sprintf("%x", sha256.Sum256(text))}, nil
}

// LoadRoutes is the table of all routes: those of the configuration, and those of its file of routes as it is now.
func (d *Delivery) LoadRoutes() (route.Table, error) {
	list, err := d.AllRoutes()
	if err != nil {
		return route.Table{}, err
	}
	return routeTable(list)
}

// AllRoutes are the routes of the configuration, then those of its file of routes as it is now.
func (d *Delivery) AllRoutes() ([]Route, error) {
	var text []byte
	if d.RoutesFile != "" {
		var err error
		if text, err = ReadRoutes(d.RoutesFile); err != nil {
			return nil, err
		}
	}
	return d.parseRoutes(text)
}

// maxRoutesFile bounds a file of routes, in octets: room for more than 100,000 of them.
const maxRoutesFile = 16 << 20

// ReadRoutes reads a file of routes, or one that they name.
func ReadRoutes(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read file of routes: %w", err)
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxRoutesFile+1))
	if err != nil {
		return nil, fmt.Errorf("read file of routes: %w", err)
	}
	if len(text) > maxRoutesFile {
		return nil, fmt.Errorf("read file of routes: %s is larger than 16 MiB: is it the right file?", path)
	}
	return text, nil
}

// routesFile is the form of a file of routes.
type routesFile struct {
	Routes []Route `yaml:"routes"`
}

// ParseRoutes is the table of the routes of the configuration and of the content of its file of routes. What is wrong
// comes back as Errors.
func (d *Delivery) ParseRoutes(text []byte) (route.Table, error) {
	list, err := d.parseRoutes(text)
	if err != nil {
		return route.Table{}, err
	}
	return routeTable(list)
}

func (d *Delivery) parseRoutes(text []byte) ([]Route, error) {
	from := &source{file: d.RoutesFile, lines: make(map[string]int)}
	dec := decoder{faults: faults{source: from}}
	var file routesFile
	root, fault := parseYAML(text)
	if fault != nil {
		dec.faults.addAt(fault.Line, "", "%s", fault.Text)
		return nil, dec.faults.list
	}
	if root != nil {
		dec.fill(reflect.ValueOf(&file).Elem(), root, "")
	}
	f := &faults{source: from}
	checkRoutes(f, "routes", file.Routes, d.Routes)
	d.checkPools(f, "routes", file.Routes)
	for _, fault := range f.list {
		if !dec.faults.concern(fault.Setting) {
			dec.faults.list = append(dec.faults.list, fault)
		}
	}
	if len(dec.faults.list) > 0 {
		return nil, sorted(dec.faults.list)
	}
	return append(append([]Route(nil), d.Routes...), file.Routes...), nil
}

// checkRoutes finds what is wrong with routes, and which of them ask for the same as others, also of those before.
func checkRoutes(f *faults, section string, list, before []Route) {
	found := len(f.list)
	for i := range list {
		checkRoute(f, section+"["+strconv.Itoa(i)+"]", &list[i])
	}
	own := faults{list: f.list[found:]}
	var all []route.Route
	var settings []string // where each stands
	gather := func(list []Route, section string) {
		for i := range list {
			setting := section + "[" + strconv.Itoa(i) + "]"
			for j, domain := range list[i].Domains {
				name := setting + ".domains[" + strconv.Itoa(j) + "]"
				if own.concern(name) || own.concern(setting+".senders") {
					continue // what follows from a fault is no news
				}
				all = append(all, route.Route{Name: list[i].Name, Match: domain, Senders: list[i].Senders, Clients: list[i].Clients, Classes: list[i].Classes})
				settings = append(settings, name)
			}
		}
	}
	gather(before, "\x00") // no name of a setting: what is wrong with these is said elsewhere
	first := len(all)
	gather(list, section)
	_, err := route.NewTable(all)
	for _, one := range unjoin(err) {
		wrong, is := errors.AsType[*route.Error](one)
		switch {
		case !is || wrong.Index < first:
		case errors.Is(one, route.ErrDuplicate):
			f.add(settings[wrong.Index], "%s: %v: remove one of the two, or give it a further condition", wrong.Route.Match, wrong.Err)
		default:
			f.add(settings[wrong.Index], "%v", wrong.Err)
		}
	}
}

func unjoin(err error) []error {
	if joined, is := err.(interface{ Unwrap() []error }); is {
		return joined.Unwrap()
	}
	return nil
}

func checkRoute(f *faults, setting string, r *Route) {
	if len(r.Domains) == 0 {
		f.add(setting, "has no domains: name at least one, or * for all that no other route names")
	}
	for i, domain := range r.Domains {
		name := setting + ".domains[" + strconv.Itoa(i) + "]"
		switch err := route.CheckMatch(domain); {
		case errors.Is(err, route.ErrPattern):
			f.add(name, "%q: %v", domain, err)
		case err != nil:
			f.add(name, "%q is none of example.com, .example.com, /pattern/ and *", domain)
		}
	}
	for i, sender := range r.Senders {
		if route.CheckSender(sender) != nil {
			f.add(setting+".senders["+strconv.Itoa(i)+"]", "%q is none of user@example.com, @example.com, .example.com and <>", sender)
		}
	}
	hop, err := route.ParseNextHop(r.Via)
	switch {
	case errors.Is(err, route.ErrReply):
		f.add(setting+".via", "%q is no reply: write error:550 5.1.1 text, with a code from 400 to 599 and an enhanced code of the same class", r.Via)
	case errors.Is(err, route.ErrPort), errors.Is(err, route.ErrWeight), errors.Is(err, route.ErrTooMany):
		f.add(setting+".via", "%v", err)
	case err != nil:
		f.add(setting+".via", "%q is none of mx, mx:domain, smtp:[host]:port, smtps:[host]:port, error:CODE text and discard; for example smtp:[smarthost.example.com]:25", r.Via)
	}
	for _, given := range []struct{ name, secret string }{{"auth", r.Auth}, {"client_cert", r.ClientCert}} {
		if given.secret != "" && !isSecretName(given.secret) {
			f.add(setting+"."+given.name, "%q is no name of a secret: want letters, digits, and . _ - + @, no dot in front", given.secret)
		}
	}
	if strings.ContainsAny(r.Source, " \t\r\n") {
		f.add(setting+".source", "%q is no name of a pool", r.Source)
	}
	if r.TLS == RouteTLSNone && slices.ContainsFunc(hop.Endpoints, func(e route.Endpoint) bool { return e.IsTLS }) {
		f.add(setting+".tls", "is none, and via says smtps, which is TLS from the first octet: take the line away, or write verify")
	}
	if r.ClientCert != "" && r.TLS != RouteTLSEncrypt && r.TLS != RouteTLSVerify && !hop.IsTLS() {
		f.add(setting+".client_cert", "is shown under TLS, which tls: %s does not insist on: write tls: verify, or encrypt", r.TLS)
	}
	if r.CA != "" && r.TLS != RouteTLSVerify {
		f.add(setting+".ca", "is for tls: verify, not for %s, which looks at no certificate", r.TLS)
	}
	switch {
	case r.Auth == "" && r.AuthInsecure:
		f.add(setting+".auth_insecure", "is for auth, which is not given: remove it, or name the secret")
	case r.Auth != "" && err == nil && len(hop.Endpoints) == 0:
		f.add(setting+".auth", "is for via: smtp:[host]:port or smtps:[host]:port: other hosts have no account for us")
	case r.Auth != "" && r.TLS != RouteTLSVerify && !r.AuthInsecure:
		f.add(setting+".auth", "sends a password, and tls: %s does not prove to whom: write tls: verify (or, if you must, auth_insecure: true)", r.TLS)
	}
}

// isSecretName reports what can be the name of a secret below smarthosts/ or tls/.
func isSecretName(name string) bool {
	const octets = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-+@"
	return len(name) <= 128 && name[0] != '.' && strings.Trim(name, octets) == ""
}
