package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newStore(t *testing.T, o Options) *Store {
	t.Helper()
	s, err := New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// shake makes a handshake and returns the serial number that the client saw.
func shake(t testing.TB, s *Store, client *tls.Config) int64 {
	t.Helper()
	a, b := net.Pipe()
	defer func() { _, _ = a.Close(), b.Close() }()
	deadline := time.Now().Add(time.Minute)
	_, _ = a.SetDeadline(deadline), b.SetDeadline(deadline)
	client.InsecureSkipVerify = true
	server := tls.Server(b, &tls.Config{GetCertificate: s.GetCertificate})
	done := make(chan error, 1)
	go func() { done <- server.Handshake() }()
	c := tls.Client(a, client)
	err := c.Handshake()
	if err != nil {
		_ = a.Close()
	}
	serverErr := <-done
	if err != nil || serverErr != nil {
		t.Errorf("handshake: client %v, server %v", err, serverErr)
		return 0
	}
	return c.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
}

func TestChoice(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, Options{Pairs: []Pair{
		write(t, dir, "rsa", cert{key: rsaKey(t), serial: 1, names: []string{"relay.test", "old.test"}}),
		write(t, dir, "other", cert{key: ecKey(t), serial: 2, names: []string{"other.test", "*.wild.test"}}),
		write(t, dir, "ec", cert{key: ecKey(t), serial: 3, names: []string{"relay.test"}}),
		write(t, dir, "ed", cert{key: edKey(t), serial: 4, names: []string{"ed.test"}}),
	}})
	onlyRSA := []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}
	for _, tt := range []struct {
		name   string
		client *tls.Config
		want   int64
	}{
		{"ECDSA where it can", &tls.Config{ServerName: "relay.test"}, 3},
		{"ECDSA where it can, TLS 1.2", &tls.Config{ServerName: "relay.test", MaxVersion: tls.VersionTLS12}, 3},
		{"RSA where it must", &tls.Config{ServerName: "relay.test", MaxVersion: tls.VersionTLS12, CipherSuites: onlyRSA}, 1},
		{"a name that one has", &tls.Config{ServerName: "old.test"}, 1},
		{"another host", &tls.Config{ServerName: "other.test"}, 2},
		{"a wildcard", &tls.Config{ServerName: "a.wild.test"}, 2},
		{"capitals", &tls.Config{ServerName: "OTHER.test"}, 2},
		{"not the wildcard's domain itself", &tls.Config{ServerName: "wild.test"}, 3},
		{"not two labels below a wildcard", &tls.Config{ServerName: "a.b.wild.test"}, 3},
		{"Ed25519", &tls.Config{ServerName: "ed.test"}, 4},
		{"a name that is not ours", &tls.Config{ServerName: "stranger.test"}, 3},
		{"no name: of the first host", &tls.Config{}, 3},
		{"no name, RSA", &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: onlyRSA}, 1},
		{"another host that it cannot verify", &tls.Config{ServerName: "other.test", MaxVersion: tls.VersionTLS12, CipherSuites: onlyRSA}, 1},
	} {
		if got := shake(t, s, tt.client); got != tt.want {
			t.Errorf("%s: got certificate %d, want %d", tt.name, got, tt.want)
		}
	}
	// A hello as old and narrow clients say it: signature schemes of RSA only.
	for _, tt := range []struct {
		schemes []tls.SignatureScheme
		name    string
		want    int64
	}{
		{[]tls.SignatureScheme{tls.PSSWithSHA256, tls.PKCS1WithSHA256}, "relay.test", 1},
		{[]tls.SignatureScheme{tls.PSSWithSHA256, tls.ECDSAWithP256AndSHA256}, "relay.test", 3},
		{[]tls.SignatureScheme{tls.ECDSAWithP256AndSHA256}, "relay.test.", 3},
		{[]tls.SignatureScheme{tls.PSSWithSHA256}, "", 1},
		{[]tls.SignatureScheme{tls.ECDSAWithP384AndSHA384}, "relay.test", 1}, // nothing fits: the first, and the handshake says it
	} {
		got, err := s.GetCertificate(&tls.ClientHelloInfo{ServerName: tt.name, SignatureSchemes: tt.schemes,
			SupportedVersions: []uint16{tls.VersionTLS13}, CipherSuites: []uint16{tls.TLS_AES_128_GCM_SHA256}, SupportedCurves: []tls.CurveID{tls.X25519}})
		if err != nil || got.Leaf.SerialNumber.Int64() != tt.want {
			t.Errorf("%v for %q: got certificate %d, %v, want %d", tt.schemes, tt.name, got.Leaf.SerialNumber, err, tt.want)
		}
	}
}

// reload is a store whose log can be asked.
type reload struct {
	*Store
	t   *testing.T
	log *bytes.Buffer
}

// want looks twice, and compares the certificate in force and how often a text
// was logged so far.
func (r reload) want(serial int64, text string, times int) {
	r.t.Helper()
	time.Sleep(time.Millisecond) // no two versions of a file are of the same moment
	r.look(context.Background())
	r.look(context.Background()) // says nothing twice
	if got := shake(r.t, r.Store, &tls.Config{}); got != serial {
		r.t.Errorf("got certificate %d, want %d", got, serial)
	}
	if got := strings.Count(r.log.String(), text); got != times {
		r.t.Errorf("got %q %d times, want %d:\n%s", text, got, times, r.log)
	}
}

func TestReload(t *testing.T) { synctest.Test(t, testReload) }

func testReload(t *testing.T) {
	dir := t.TempDir()
	r := reload{t: t, log: new(bytes.Buffer)}
	key := ecKey(t)
	p := write(t, dir, "a", cert{key: key, serial: 1, names: []string{"relay.test"}})
	r.Store = newStore(t, Options{Pairs: []Pair{p}, Logger: slog.New(slog.NewTextHandler(r.log, nil))})
	const bad = "stays in force"

	r.want(1, bad, 0)
	write(t, dir, "a", cert{key: key, serial: 2, names: []string{"relay.test"}, age: time.Minute})
	r.want(2, bad, 0)
	whole, keyText := read(t, p.Cert), read(t, p.Key)

	put(t, p.Cert, whole[:len(whole)/2], 0)
	r.want(2, bad, 0) // somebody may be writing
	for n := 0; n < len(whole); n += 50 {
		put(t, p.Cert, whole[:n], 0)
		r.look(t.Context())
	}
	put(t, p.Cert, whole[:len(whole)/2], time.Minute)
	r.want(2, bad, 1)
	put(t, p.Cert, whole[:len(whole)/3], 50*time.Second) // another change
	r.want(2, bad, 2)
	put(t, p.Cert, whole, time.Minute)
	r.want(2, bad, 2)
	r.want(2, "as they were, and good", 1)

	// A key is replaced, and its certificate a moment later.
	next := write(t, t.TempDir(), "b", cert{key: ecKey(t), serial: 3, names: []string{"relay.test"}})
	put(t, p.Key, read(t, next.Key), 0)
	r.want(2, bad, 2)
	put(t, p.Cert, read(t, next.Cert), time.Minute)
	r.want(3, bad, 2)
	// … or never.
	put(t, p.Key, keyText, time.Minute)
	r.want(3, bad, 3)
	put(t, p.Key, read(t, next.Key), time.Minute)
	r.want(3, bad, 3)

	write(t, dir, "a", cert{key: key, serial: 4, age: time.Minute})
	r.want(3, "names no host", 1)
	write(t, dir, "a", cert{key: key, serial: 5, names: []string{"relay.test"}, age: time.Minute})
	r.want(5, bad, 4)
	if err := os.Chmod(p.Key, 0o644); err != nil {
		t.Fatal(err)
	}
	r.want(5, "chmod 0600", 1)
	if err := os.Chmod(p.Key, 0o600); err != nil {
		t.Fatal(err)
	}
	r.want(5, "chmod 0600", 1)
	if err := os.Remove(p.Cert); err != nil {
		t.Fatal(err)
	}
	r.want(5, "no such file", 1)
	write(t, dir, "a", cert{key: key, serial: 6, names: []string{"relay.test"}})
	r.want(6, "no such file", 1)

	// A link that is turned to other files, as Kubernetes and certbot do it; the new ones are as large and as old.
	one, two := t.TempDir(), t.TempDir()
	write(t, one, "a", cert{key: key, serial: 7, names: []string{"relay.test"}, age: time.Minute})
	write(t, two, "a", cert{key: key, serial: 8, names: []string{"relay.test"}, age: time.Minute})
	turn := func(to string) {
		for _, path := range []string{p.Cert, p.Key} {
			if err := os.Symlink(filepath.Join(to, filepath.Base(path)), path+"~"); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(path+"~", path); err != nil {
				t.Fatal(err)
			}
		}
	}
	turn(one)
	r.want(7, "no such file", 1)
	turn(two)
	r.want(8, "no such file", 1)
}

// TestUnchangedFilesAreLeftAlone: the same files are not read again and again.
func TestUnchangedFilesAreLeftAlone(t *testing.T) { synctest.Test(t, testUnchangedFilesAreLeftAlone) }

func testUnchangedFilesAreLeftAlone(t *testing.T) {
	p := write(t, t.TempDir(), "a", cert{key: ecKey(t), serial: 1, names: []string{"relay.test"}, age: time.Minute})
	s := newStore(t, Options{Pairs: []Pair{p}})
	before := (*s.now.Load())[0]
	s.look(t.Context())
	if got := (*s.now.Load())[0]; got != before || !s.files[0].wasRead {
		t.Errorf("got another certificate from the same files, read %v", s.files[0].wasRead)
	}
	// A change that size and time do not show, while the file is young.
	text := read(t, p.Key)
	put(t, p.Key, text, 0)
	s.look(t.Context())
	if s.files[0].wasRead {
		t.Error("a file that was just written is taken for settled")
	}
}

func TestNewRefuses(t *testing.T) {
	dir := t.TempDir()
	good := write(t, dir, "good", cert{key: ecKey(t), serial: 1, names: []string{"relay.test"}})
	open := write(t, dir, "open", cert{key: ecKey(t), serial: 1, names: []string{"relay.test"}})
	if err := os.Chmod(open.Key, 0o640); err != nil {
		t.Fatal(err)
	}
	a := newAuthority(t)
	chain := a.write(t, dir, "chain", cert{key: ecKey(t), serial: 2, names: []string{"relay.test"}})
	large := filepath.Join(dir, "large")
	put(t, large, bytes.Repeat([]byte("x"), maxFileBytes+1), 0)
	wrongOrder := a.write(t, dir, "order", cert{key: ecKey(t), serial: 2, names: []string{"relay.test"}})
	put(t, wrongOrder.Cert, append(read(t, wrongOrder.Cert), read(t, good.Cert)...), 0)
	rootFirst := a.write(t, dir, "root", cert{key: ecKey(t), serial: 2, names: []string{"relay.test"}})
	put(t, rootFirst.Cert, append(a.pem(), read(t, rootFirst.Cert)...), 0)

	for _, tt := range []struct {
		name  string
		pairs []Pair
		want  string // empty: no error
	}{
		{"none", nil, "none given"},
		{"a chain", []Pair{chain}, ""},
		{"not there", []Pair{good, {Cert: filepath.Join(dir, "x"), Key: good.Key}}, "no such file"},
		{"key of another", []Pair{{Cert: good.Cert, Key: chain.Key}}, "does not match"},
		{"key for all to read", []Pair{open}, "has mode 0640, so others can read it: chmod 0600 it"},
		{"a directory", []Pair{{Cert: dir, Key: good.Key}}, "is no file"},
		{"too large", []Pair{{Cert: large, Key: good.Key}}, "is larger than 1048576 octets"},
		{"no PEM", []Pair{{Cert: good.Key, Key: good.Key}}, "certificate"},
		{"no names", []Pair{write(t, dir, "nobody", cert{key: ecKey(t), serial: 1})}, "names no host"},
		{"a stranger in the chain", []Pair{wrongOrder}, "number 3 of the chain"},
		{"root first", []Pair{rootFirst}, "does not match"},
	} {
		_, err := New(t.Context(), Options{Pairs: tt.pairs})
		if got := err == nil; got != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestWarnings(t *testing.T) {
	a := newAuthority(t)
	for _, tt := range []struct {
		name string
		cert cert
		self bool
		want string
	}{
		{"good", cert{}, false, ""},
		{"self-signed", cert{}, true, "signed by itself"},
		{"soon", cert{left: 13 * 24 * time.Hour}, false, "ends soon"},
		{"ended", cert{left: -time.Minute}, false, "has ended"},
		{"not yet", cert{after: time.Hour}, false, "not valid yet"},
		{"another host", cert{names: []string{"other.test"}}, false, "no certificate is for our hostname"},
	} {
		var log bytes.Buffer
		tt.cert.key, tt.cert.serial = ecKey(t), 1
		if tt.cert.names == nil {
			tt.cert.names = []string{"relay.test"}
		}
		p := write(t, t.TempDir(), "a", tt.cert)
		if !tt.self {
			p = a.write(t, t.TempDir(), "a", tt.cert)
		}
		newStore(t, Options{Pairs: []Pair{p}, Hostname: "relay.test", Logger: slog.New(slog.NewTextHandler(&log, nil))})
		warnings := 0
		if tt.want != "" {
			warnings = 1
		}
		if got := strings.Count(log.String(), "level=WARN"); got != warnings || !strings.Contains(log.String(), tt.want) {
			t.Errorf("%s: want %d warning %q, got:\n%s", tt.name, warnings, tt.want, &log)
		}
		if !strings.Contains(log.String(), `msg="certificate in force"`) || !strings.Contains(log.String(), "names=["+tt.cert.names[0]+"]") {
			t.Errorf("%s: got no line of what is in force:\n%s", tt.name, &log)
		}
	}
}

// TestTime: files are looked at every ten seconds or so, and the end of a
// certificate is said in time without any change.
func TestTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		a := newAuthority(t)
		var mu sync.Mutex
		var log bytes.Buffer
		key := ecKey(t)
		p := a.write(t, dir, "a", cert{key: key, serial: 1, names: []string{"relay.test"}, left: 15 * 24 * time.Hour})
		s := newStore(t, Options{Pairs: []Pair{p}, Logger: slog.New(slog.NewTextHandler(lockedWriter{&mu, &log}, nil))})
		s.Start()
		count := func(text string) int {
			mu.Lock()
			defer mu.Unlock()
			return strings.Count(log.String(), text)
		}
		a.write(t, dir, "a", cert{key: key, serial: 2, names: []string{"relay.test"}, left: 15 * 24 * time.Hour})
		time.Sleep(7 * time.Second)
		if got := shake(t, s, &tls.Config{}); got != 1 {
			t.Errorf("got certificate %d after 7 s, want 1", got)
		}
		time.Sleep(6 * time.Second)
		if got := shake(t, s, &tls.Config{}); got != 2 {
			t.Errorf("got certificate %d after 13 s, want 2", got)
		}
		for _, tt := range []struct{ days, soon, ended int }{{0, 0, 0}, {2, 1, 0}, {12, 1, 0}, {2, 1, 1}, {1, 1, 1}} {
			time.Sleep(time.Duration(tt.days)*24*time.Hour + time.Minute)
			if soon, ended := count("ends soon"), count("has ended"); soon != tt.soon || ended != tt.ended {
				t.Errorf("got %d and %d warnings after %d more days, want %d and %d", soon, ended, tt.days, tt.soon, tt.ended)
			}
		}
		for range 2 {
			if err := s.Stop(t.Context()); err != nil {
				t.Errorf("stop: %v", err)
			}
		}
	})
}

func TestStop(t *testing.T) {
	p := write(t, t.TempDir(), "a", cert{key: ecKey(t), serial: 1, names: []string{"relay.test"}})
	s := newStore(t, Options{Pairs: []Pair{p}})
	if err := s.Stop(t.Context()); err != nil {
		t.Errorf("got %v before the start", err)
	}
	s.Start()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_ = s.Stop(ended) // may or may not have waited
	if err := s.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestMetrics(t *testing.T) {
	dir := t.TempDir()
	r := prometheus.NewPedanticRegistry()
	a := write(t, dir, "a", cert{key: ecKey(t), serial: 1, names: []string{"relay.test"}})
	b := write(t, dir, "b", cert{key: ecKey(t), serial: 2, names: []string{"relay.test"}})
	newStore(t, Options{Pairs: []Pair{a, b}, Registerer: r})
	s := newStore(t, Options{Pairs: []Pair{a}, Registerer: r}) // another listener
	want := func(path string) {
		t.Helper()
		leaf, err := tls.LoadX509KeyPair(path, strings.TrimSuffix(path, ".pem")+".key")
		if err != nil {
			t.Fatal(err)
		}
		var m dto.Metric
		if err := s.notAfter.WithLabelValues(path).Write(&m); err != nil {
			t.Fatal(err)
		}
		if got := m.GetGauge().GetValue(); got != float64(leaf.Leaf.NotAfter.Unix()) {
			t.Errorf("%s: got %v, want %v", path, got, leaf.Leaf.NotAfter.Unix())
		}
	}
	want(a.Cert)
	want(b.Cert)
	write(t, dir, "a", cert{key: ecKey(t), serial: 3, names: []string{"relay.test"}, left: time.Hour})
	s.look(t.Context())
	want(a.Cert)
	families, err := r.Gather()
	if err != nil || len(families) != 1 || families[0].GetName() != "relay_ingress_certificate_not_after_seconds" || len(families[0].GetMetric()) != 2 {
		t.Errorf("got %v, %v, want one family of two series", families, err)
	}
	other := prometheus.NewRegistry()
	other.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "relay_ingress_certificate_not_after_seconds"}))
	if _, err := New(t.Context(), Options{Pairs: []Pair{a}, Registerer: other}); err == nil {
		t.Error("got no error for a metric of the same name")
	}
}

// TestReloadUnderHandshakes: each of hundreds of handshakes succeeds, with one
// of the certificates, while they are replaced all the time, in place.
func TestReloadUnderHandshakes(t *testing.T) {
	dir := t.TempDir()
	ec, rsa := ecKey(t), rsaKey(t)
	pairs := []Pair{write(t, dir, "rsa", cert{key: rsa, serial: 1, names: []string{"relay.test"}}), write(t, dir, "ec", cert{key: ec, serial: 2, names: []string{"relay.test"}})}
	s := newStore(t, Options{Pairs: pairs, Refresh: time.Millisecond})
	s.Start()
	var wg sync.WaitGroup
	var written atomic.Int64 // the newest serial number
	for range 4 {
		wg.Go(func() {
			last := int64(0)
			for n := 0; n < 75 || written.Load() < 10; n++ {
				got := shake(t, s, &tls.Config{ServerName: "relay.test"})
				if got < last {
					t.Errorf("got certificate %d after %d", got, last)
				}
				last = got
			}
		})
	}
	finished := make(chan struct{})
	go func() { wg.Wait(); close(finished) }()
	serial := int64(2)
	for running := true; running; {
		select {
		case <-finished:
			running = false
		default:
			serial += 2
			write(t, dir, "rsa", cert{key: rsa, serial: serial - 1, names: []string{"relay.test"}})
			write(t, dir, "ec", cert{key: ec, serial: serial, names: []string{"relay.test"}})
			written.Store(serial)
		}
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.look(t.Context())
	if got := shake(t, s, &tls.Config{}); got != serial {
		t.Errorf("got certificate %d in the end, want %d", got, serial)
	}
}

// lockedWriter is a log that is read while it is written.
type lockedWriter struct {
	mu *sync.Mutex
	b  *bytes.Buffer
}

func (l lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// shelf is a Source in memory.
type shelf struct {
	mu         sync.Mutex
	chain, key []byte
	err        error
}

func (s *shelf) Pair(context.Context) (chain, key []byte, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Clone(s.chain), bytes.Clone(s.key), s.err
}

// put takes a pair from files.
func (s *shelf) put(t *testing.T, p Pair) {
	t.Helper()
	chain, err := os.ReadFile(p.Cert)
	if err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(p.Key)
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.chain, s.key, s.err = chain, key, nil
}

// TestSource: a pair that lies elsewhere changes like one in files; while it is out of reach, or bad, the one before is in force.
func TestSource(t *testing.T) {
	dir := t.TempDir()
	from := &shelf{err: errors.New("it is sealed")}
	pairs := []Pair{{Cert: "tls/relay", Source: from}}
	if _, err := New(t.Context(), Options{Pairs: pairs}); err == nil || !strings.Contains(err.Error(), "tls/relay: it is sealed") {
		t.Errorf("got %v", err)
	}
	from.put(t, write(t, dir, "one", cert{key: rsaKey(t), serial: 1, names: []string{"relay.test"}}))
	var log bytes.Buffer
	s := newStore(t, Options{Pairs: pairs, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	want := func(serial int64) {
		t.Helper()
		if got := shake(t, s, &tls.Config{ServerName: "relay.test"}); got != serial {
			t.Errorf("got certificate %d, want %d", got, serial)
		}
	}
	want(1)
	for _, spoil := range []func(){
		func() { from.err = errors.New("it is sealed") },
		func() { from.err, from.key = nil, []byte("no key") },
	} {
		from.mu.Lock()
		spoil()
		from.mu.Unlock()
		s.look(t.Context())
		s.look(t.Context())
		want(1)
	}
	if n := strings.Count(log.String(), "stays in force"); n != 2 {
		t.Errorf("two faults were told in %d lines", n)
	}
	from.put(t, write(t, dir, "two", cert{key: ecKey(t), serial: 2, names: []string{"relay.test"}}))
	s.look(t.Context())
	want(2)
}

// TestRenewing: one that its source renews by itself is no news before it should have been another.
func TestRenewing(t *testing.T) {
	from := &shelf{}
	from.put(t, write(t, t.TempDir(), "one", cert{key: ecKey(t), serial: 1, names: []string{"relay.test"}, left: 3 * 24 * time.Hour}))
	pair := Pair{Cert: "pki/relay", Source: from, Renews: true}
	if c := newStore(t, Options{Pairs: []Pair{pair}}).Conditions(); len(c) > 0 {
		t.Errorf("got %+v for one that ends in 3 of 3 days", c)
	}
	pair.Renews = false
	if c := newStore(t, Options{Pairs: []Pair{pair}}).Conditions(); len(c) != 1 {
		t.Errorf("got %+v for one that nobody renews", c)
	}
	var log bytes.Buffer
	leaf := &x509.Certificate{NotBefore: time.Now().Add(-3 * time.Hour), NotAfter: time.Now().Add(30 * time.Minute)}
	pair.Renews = true
	s := newStore(t, Options{Pairs: []Pair{pair}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	s.tellEnd(0, &tls.Certificate{Leaf: leaf})
	if !strings.Contains(log.String(), "ends soon") {
		t.Errorf("got %q for one in its last fifth", log.String())
	}
}
