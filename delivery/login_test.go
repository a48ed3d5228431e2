package delivery

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postroad/delivery/route"
	"postroad/delivery/smarthost"
	"postroad/delivery/smtpc"
	"postroad/queue"
)

// secretsOf is a smarthost.Source whose answers tests set.
type secretsOf struct {
	mu         sync.Mutex
	user, pass string // no user: there is no such secret
	revision   int
	err        error
	chain, key []byte
}

func (s *secretsOf) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	s.revision++
}

func (s *secretsOf) Login(context.Context, string) (map[string]any, string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil && s.user == "" {
		return nil, "", smarthost.ErrMissing
	}
	return map[string]any{"username": s.user, "password": s.pass}, fmt.Sprint(s.revision), s.err
}

func (s *secretsOf) Certificate(context.Context, string) (chain, key []byte, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil && s.chain == nil {
		return nil, nil, smarthost.ErrMissing
	}
	return s.chain, append([]byte(nil), s.key...), s.err
}

func keeperOf(t *testing.T, s smarthost.Source, refresh time.Duration) *smarthost.Keeper {
	t.Helper()
	k, err := smarthost.New(smarthost.Options{Source: s, Refresh: refresh})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return k
}

// authority makes certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{pool: x509.NewCertPool()}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(100 * 24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(a.cert)
	return a
}

func (a *authority) issue(t *testing.T, name string) (chain, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(90 * 24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &private.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

// loginWorker is a worker with one route to a smart host, whose authority is ca; nil: those of the system.
func loginWorker(t *testing.T, ca *authority, h *smartHost, s *secretsOf, mode smtpc.TLSMode, r route.Route) *Worker {
	t.Helper()
	r.Match, r.TLS = "*", &mode
	if ca != nil {
		r.CA = &route.CA{File: "ca.pem", Pool: ca.pool, Sum: "1"}
	}
	return workerWith(t, nil, func(o *Options) {
		o.Routes = tableOf(t, routed(t, r, h.via()))
		o.SmartHosts = keeperOf(t, s, time.Millisecond)
	})
}

// TestE3_52_LoginAndCertificate: mail goes by the credentials that its route names, and waits when it cannot have them; it never goes
// without.
func TestE3_52_LoginAndCertificate(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	chain, key := ca.issue(t, "relay")
	otherChain, otherKey := other.issue(t, "stranger")
	both := route.Route{Auth: "provider", ClientCert: "client-relay"}
	tests := []struct {
		name    string
		secrets secretsOf
		route   route.Route
		mode    smtpc.TLSMode
		sent    string // by whom; empty: it waits
		reason  string
		logins  int
		dials   int
	}{
		{name: "login and certificate", secrets: secretsOf{user: "relay", pass: "pw", chain: chain, key: key}, route: both, mode: smtpc.TLSVerify,
			sent: "relay/relay", logins: 1, dials: 1},
		{name: "no such login", secrets: secretsOf{chain: chain, key: key}, route: both, mode: smtpc.TLSVerify,
			reason: "no login at the next hop: smarthosts/provider: there is no such secret"},
		{name: "no such certificate", secrets: secretsOf{user: "relay", pass: "pw"}, route: both, mode: smtpc.TLSVerify,
			reason: "no login at the next hop: tls/client-relay: there is no such secret"},
		{name: "Vault is away", secrets: secretsOf{err: fmt.Errorf("%w: Vault is sealed", smarthost.ErrAway)}, route: both, mode: smtpc.TLSVerify,
			reason: "Vault is sealed"},
		{name: "wrong password", secrets: secretsOf{user: "relay", pass: "no", chain: chain, key: key}, route: both, mode: smtpc.TLSVerify,
			reason: "535 5.7.8 wrong user name or password", logins: 1, dials: 1},
		{name: "certificate of a stranger", secrets: secretsOf{user: "relay", pass: "pw", chain: otherChain, key: otherKey}, route: both, mode: smtpc.TLSVerify,
			reason: "TLS", dials: 1},
		{name: "host asks for a certificate and the route has none", secrets: secretsOf{user: "relay", pass: "pw"}, route: route.Route{Auth: "provider"}, mode: smtpc.TLSVerify,
			reason: "TLS", dials: 1},
		{name: "host asks for a login and the route has none", secrets: secretsOf{chain: chain, key: key}, route: route.Route{ClientCert: "client-relay"}, mode: smtpc.TLSVerify,
			reason: "530 5.7.0 log in first", dials: 1},
		{name: "E5-73 TLS that proves nothing", secrets: secretsOf{user: "relay", pass: "pw", chain: chain, key: key}, route: both, mode: smtpc.TLSEncrypt,
			reason: "no login without TLS that proves who the host is", dials: 1},
		{name: "E5-73 unless the route says so", secrets: secretsOf{user: "relay", pass: "pw", chain: chain, key: key},
			route: route.Route{Auth: "provider", ClientCert: "client-relay", AuthInsecure: true}, mode: smtpc.TLSEncrypt, sent: "relay/relay", logins: 1, dials: 1},
	}
	for i := range tests {
		tt := &tests[i]
		t.Run("E3-52 "+tt.name, func(t *testing.T) {
			h := startSmartHost(t, ca, true, "relay:pw")
			w := loginWorker(t, ca, h, &tt.secrets, tt.mode, tt.route)
			s := handleOne(t, w, testJob("bob@example.net"), &fakeMail{})
			connections, logins, got := h.seen()
			if connections != tt.dials || logins != tt.logins {
				t.Errorf("got %d connections and %d logins, want %d and %d", connections, logins, tt.dials, tt.logins)
			}
			if tt.sent != "" {
				if len(s.Remaining) > 0 || len(got) != 1 || got[0] != tt.sent {
					t.Errorf("got %v because of %q, want %s", got, s.Reason, tt.sent)
				}
				return
			}
			if len(s.Remaining) != 1 || len(s.Notify) > 0 || len(got) > 0 || !strings.Contains(s.Reason, tt.reason) {
				t.Errorf("got %v, remaining %v because of %q, want it to wait because of %q", got, s.Remaining, s.Reason, tt.reason)
			}
			if strings.Contains(s.Reason, "pw") {
				t.Errorf("the password is in the reason %q", s.Reason)
			}
		})
	}
}

// TestE5_ImplicitTLS: a host of smtps: is spoken to under TLS from the first octet, whatever the route's floor; the certificate is looked at
// where the route says so, and nothing goes in clear text to one that does not speak TLS at once.
func TestE5_ImplicitTLS(t *testing.T) {
	ca, stranger := newAuthority(t), newAuthority(t)
	tests := []struct {
		name     string
		ca       *authority
		mode     smtpc.TLSMode
		route    route.Route
		explicit bool // the host waits for STARTTLS
		sent     string
		reason   string
	}{
		{name: "login", ca: ca, mode: smtpc.TLSVerify, route: route.Route{Auth: "provider"}, sent: "relay/"},
		{name: "other authority", ca: stranger, mode: smtpc.TLSVerify, route: route.Route{Auth: "provider"}, reason: "certificate"},
		{name: "may is encrypt", mode: smtpc.TLSMay, route: route.Route{Auth: "provider", AuthInsecure: true}, sent: "relay/"},
		{name: "host waits for STARTTLS", mode: smtpc.TLSMay, route: route.Route{Auth: "provider", AuthInsecure: true}, explicit: true, reason: "TLS handshake failed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := startSmartHost(t, ca, false, "relay:pw")
			h.mu.Lock()
			h.implicit = !tt.explicit
			h.mu.Unlock()
			r := routed(t, tt.route, strings.Replace(h.via(), "smtp:", "smtps:", 1))
			r.Match, r.TLS = "*", &tt.mode
			if tt.ca != nil {
				r.CA = &route.CA{Pool: tt.ca.pool, Sum: "1"}
			}
			w := workerWith(t, nil, func(o *Options) {
				o.Routes = tableOf(t, r)
				o.SmartHosts = keeperOf(t, &secretsOf{user: "relay", pass: "pw"}, time.Hour)
			})
			s := handleOne(t, w, testJob("bob@example.net"), &fakeMail{})
			_, logins, got := h.seen()
			if tt.sent != "" {
				if len(s.Remaining) > 0 || len(got) != 1 || got[0] != tt.sent {
					t.Errorf("got %v because of %q, want %s", got, s.Reason, tt.sent)
				}
				return
			}
			if len(s.Remaining) != 1 || logins > 0 || len(got) > 0 || !strings.Contains(s.Reason, tt.reason) {
				t.Errorf("got %v and %d logins, waits because of %q, want %q", got, logins, s.Reason, tt.reason)
			}
		})
	}
}

// TestE3_52_AuthorityOfTheRoute: a host whose certificate comes from an authority that the route does not name gets no password.
func TestE3_52_AuthorityOfTheRoute(t *testing.T) {
	ca := newAuthority(t)
	for name, trusted := range map[string]*authority{"another": newAuthority(t), "those of the system": nil} {
		h := startSmartHost(t, ca, false, "relay:pw")
		w := loginWorker(t, trusted, h, &secretsOf{user: "relay", pass: "pw"}, smtpc.TLSVerify, route.Route{Auth: "provider"})
		s := handleOne(t, w, testJob("bob@example.net"), &fakeMail{})
		if _, logins, got := h.seen(); logins > 0 || len(got) > 0 || len(s.Remaining) != 1 || !strings.Contains(s.Reason, "certificate") {
			t.Errorf("%s: got %d logins, %v, waits because of %q", name, logins, got, s.Reason)
		}
	}
}

// TestConnectionsOfAnotherAuthority: what one route's authority has vouched for is nothing to a route with another.
func TestConnectionsOfAnotherAuthority(t *testing.T) {
	ca, other, mode := newAuthority(t), newAuthority(t), smtpc.TLSVerify
	h := startSmartHost(t, ca, false, "relay:pw")
	w := workerWith(t, nil, func(o *Options) {
		o.Routes = tableOf(t,
			routed(t, route.Route{Match: "a.test", TLS: &mode, Auth: "provider", CA: &route.CA{Pool: ca.pool, Sum: "1"}}, h.via()),
			routed(t, route.Route{Match: "b.test", TLS: &mode, Auth: "provider", CA: &route.CA{Pool: other.pool, Sum: "2"}}, h.via()))
		o.SmartHosts = keeperOf(t, &secretsOf{user: "relay", pass: "pw"}, time.Hour)
	})
	if s := handleOne(t, w, testJob("bob@a.test"), &fakeMail{}); len(s.Remaining) > 0 {
		t.Errorf("waits because of %q", s.Reason)
	}
	if s := handleOne(t, w, testJob("bob@b.test"), &fakeMail{}); len(s.Remaining) != 1 {
		t.Errorf("went by a connection of the other authority: %+v", s)
	}
}

// TestNoSecretsConfigured: a worker that knows no secrets sends nothing by a route that needs one.
func TestNoSecretsConfigured(t *testing.T) {
	n := newFakeNet()
	n.serve("192.0.2.1", ok)
	w := workerWith(t, n, func(o *Options) {
		o.Routes = tableOf(t, routed(t, route.Route{Match: "*", Auth: "provider"}, "smtp:[192.0.2.1]"))
	})
	if s := handleOne(t, w, testJob("bob@example.net"), &fakeMail{}); len(s.Remaining) != 1 || n.dialled("192.0.2.1") > 0 {
		t.Errorf("got %+v", s)
	}
}

// TestConnectionsAreNotShared: of two routes to the same host that differ in what we prove ourselves by, neither uses a
// connection of the other.
func TestConnectionsAreNotShared(t *testing.T) {
	ca := newAuthority(t)
	one, two := proof{}, proof{}
	w := workerWith(t, nil, func(o *Options) {
		s := &secretsOf{user: "u", pass: "p"}
		s.chain, s.key = ca.issue(t, "relay")
		o.SmartHosts = keeperOf(t, s, time.Hour)
	})
	keys := make(map[poolKey]string)
	for _, r := range []route.Route{{}, {Auth: "a"}, {Auth: "b"}, {Auth: "a", AuthInsecure: true}, {ClientCert: "a"}, {ClientCert: "b"}, {Auth: "a", ClientCert: "a"}} {
		a := &attempt{w: w, job: testJob("bob@example.net"), route: r}
		if isReady, err := a.prove(t.Context()); !isReady || err != nil {
			t.Fatalf("%+v: got %v, %v, %v", r, isReady, err, a.replies)
		}
		name := fmt.Sprintf("%+v", r)
		if before, is := keys[a.key]; is {
			t.Errorf("%s has the key of %s", name, before)
		}
		keys[a.key] = name
	}
	one.auth, two.auth = &smtpc.Auth{}, &smtpc.Auth{}
	one.login.Revision, two.login.Revision = "1", "2"
	if one.key("a") == two.key("a") {
		t.Error("two versions of a login have one key")
	}
}

// TestRefusedLoginIsNotRepeated: a login that the host refuses is not tried by every job; a new version is tried at once.
func TestRefusedLoginIsNotRepeated(t *testing.T) {
	ca := newAuthority(t)
	h := startSmartHost(t, ca, false, "relay:right")
	s := &secretsOf{user: "relay", pass: "wrong"}
	w := loginWorker(t, ca, h, s, smtpc.TLSVerify, route.Route{Auth: "provider"})
	for range 10 {
		d := handleOne(t, w, testJob("bob@example.net"), &fakeMail{})
		if len(d.Remaining) != 1 || !strings.Contains(d.Reason, "535 5.7.8 wrong user name or password") {
			t.Fatalf("got %+v", d)
		}
	}
	if _, logins, _ := h.seen(); logins != 1 {
		t.Errorf("got %d logins with a wrong password", logins)
	}
	s.set(func() { s.pass = "right" })
	untilDelivered(t, w, true)
	if _, logins, _ := h.seen(); logins != 2 {
		t.Errorf("got %d logins, want one with the new password", logins)
	}
}

func TestRefusedLogins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r refusedLogins
		admitted := func() bool { _, wait := r.admit("k"); return wait == 0 }
		if !admitted() {
			t.Fatal("not admitted before anything was refused")
		}
		for range 5 {
			r.add("k", "535 no") // dialogues that ran at the same time
		}
		if said, wait := r.admit("k"); said != "535 no" || wait != firstRefusal {
			t.Errorf("got %q, %s", said, wait)
		}
		pause := firstRefusal
		for range 10 {
			time.Sleep(pause)
			if !admitted() || admitted() {
				t.Errorf("after %s: want one to try, and one only", pause)
			}
			r.add("k", "535 no")
			pause = min(2*pause, maxRefusal)
			time.Sleep(pause - time.Second)
			if admitted() {
				t.Errorf("admitted before %s", pause)
			}
			time.Sleep(time.Second)
			if !admitted() {
				t.Errorf("not admitted after %s", pause)
			}
			r.add("k", "535 no")
			pause = min(2*pause, maxRefusal)
		}
		r.forgive("k")
		if !admitted() {
			t.Error("not admitted after it was forgiven")
		}
		for i := range 2 * maxRefused {
			r.add(fmt.Sprint(i), "535 no")
		}
		if len(r.list) > maxRefused {
			t.Errorf("got %d in memory", len(r.list))
		}
	})
}

// TestRotationDuringTraffic: a password and a certificate that change while mail flows fail no mail. When the host takes the old password
// for a while, none even waits; when it takes only the new one from the moment of the change, what was under way may be tried once more.
func TestRotationDuringTraffic(t *testing.T) {
	for _, overlaps := range []bool{true, false} {
		t.Run(fmt.Sprint("overlap ", overlaps), func(t *testing.T) {
			ca := newAuthority(t)
			h := startSmartHost(t, ca, true, "relay:pw0")
			s := &secretsOf{user: "relay", pass: "pw0"}
			s.chain, s.key = ca.issue(t, "relay")
			w := loginWorker(t, ca, h, s, smtpc.TLSVerify, route.Route{Auth: "provider", ClientCert: "client-relay"})
			const mails, rotations = 200, 5
			var wg sync.WaitGroup
			next := make(chan int)
			for range 8 {
				wg.Go(func() {
					for range next {
						untilDelivered(t, w, !overlaps)
					}
				})
			}
			allowed := []string{"relay:pw0"}
			for i := range mails {
				if i%(mails/rotations) == mails/rotations/2 {
					pass := fmt.Sprint("pw", i)
					chain, key := ca.issue(t, fmt.Sprint("relay", i))
					if overlaps {
						allowed = append(allowed, "relay:"+pass)
						h.allow(allowed...)
					}
					change := func() { s.set(func() { s.pass, s.chain, s.key = pass, chain, key }) }
					if overlaps {
						change()
					} else {
						h.allowWith(change, "relay:"+pass)
					}
				}
				next <- i
			}
			close(next)
			wg.Wait()
			_, _, got := h.seen()
			if len(got) != mails {
				t.Errorf("got %d mails of %d", len(got), mails)
			}
			names := make(map[string]bool)
			for _, who := range got {
				names[who] = true
			}
			if len(names) < 2 {
				t.Errorf("got only %v: no new certificate was used", names)
			}
		})
	}
}

// untilDelivered takes one job through as many attempts as it needs.
func untilDelivered(t *testing.T, w *Worker, mayWait bool) {
	job := testJob("bob@example.net")
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
		m := &fakeMail{}
		w.handle(t.Context(), job, m)
		m.mu.Lock()
		settled := m.settled
		m.mu.Unlock()
		switch {
		case len(settled) != 1 || len(settled[0].Notify) > 0:
			t.Errorf("got %+v", settled)
			return
		case len(settled[0].Remaining) == 0:
			if settled[0].Facts[0].Type != queue.Delivered {
				t.Errorf("got %+v", settled[0].Facts)
			}
			return
		case !mayWait || time.Now().After(end):
			t.Errorf("waits because of %q", settled[0].Reason)
			return
		}
		job.Reason = settled[0].Reason
	}
}
