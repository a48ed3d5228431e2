package delivery

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"postroad/delivery/mx"
	"postroad/delivery/mx/mxtest"
	"postroad/delivery/smtpc"
	"postroad/delivery/tlspolicy"
	"postroad/delivery/tlsrpt"
	"postroad/queue"
	"postroad/queue/address"
)

// tlsNames answers for policies.
type tlsNames struct {
	tlsa map[string]mx.TLSAAnswer
	fail map[string]error
}

func (n tlsNames) LookupTLSA(_ context.Context, name string) (mx.TLSAAnswer, error) {
	return n.tlsa[name], n.fail[name]
}
func (n tlsNames) LookupTXT(context.Context, string) ([]string, error) { return nil, nil }
func (n tlsNames) LookupAlias(context.Context, string) (bool, error)   { return false, nil }

// sessions are those that were noted.
type sessions struct {
	mu  sync.Mutex
	got []string
}

func (s *sessions) Note(r tlsrpt.Result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got = append(s.got, strings.TrimSpace(fmt.Sprintf("%s %s %s", r.Domain, r.Policy.Type, r.Failure.Result)))
}

// tlsWorker has example.net with the hosts mx1 and mx2, and example.org on the same hosts; DNSSEC proves what secure names.
func tlsWorker(t *testing.T, n *fakeNet, names tlsNames, secure ...string) (*Worker, *sessions) {
	t.Helper()
	set := []mx.MX{{Host: "mx1.example.net", Preference: 10}, {Host: "mx2.example.net", Preference: 20}}
	records := mxtest.Records{
		MX:     map[string][]mx.MX{"example.net": set, "example.org": set},
		Hosts:  map[string][]string{"mx1.example.net": {"198.51.100.1"}, "mx2.example.net": {"198.51.100.2"}},
		Secure: map[string]bool{},
	}
	for _, name := range secure {
		records.Secure[name] = true
	}
	noted := &sessions{}
	w := workerWith(t, n, func(o *Options) {
		o.Resolver, o.TLSReports = records, noted
		o.TLSPolicies = tlspolicy.New(tlspolicy.Options{Names: names})
	})
	return w, noted
}

// inTLS is a host with TLS that takes everything, and tells how it was dialled.
func inTLS(n *fakeNet, host string, dials *[]smtpc.Options, fail error) {
	var mu sync.Mutex
	n.set(host, func(_ context.Context, o smtpc.Options) (*fakeConn, error) {
		mu.Lock()
		defer mu.Unlock()
		*dials = append(*dials, o)
		if fail != nil {
			return nil, fail
		}
		c := &fakeConn{answer: ok}
		if o.TLS != smtpc.TLSNone {
			c.state = &tls.ConnectionState{Version: tls.VersionTLS13, CipherSuite: tls.TLS_AES_128_GCM_SHA256}
		}
		return c, nil
	})
}

var digest = mx.TLSAAnswer{IsSecure: true, Records: []mx.TLSA{{Usage: 3, Selector: 1, Matching: 1, Data: make([]byte, 32)}}}

var allSecure = []string{"example.net", "mx1.example.net", "mx2.example.net"}

// Row E5-69: a look-up that fails, or a certificate that does not match, keeps mail from that host, and from that host only.
func TestE5_69_DANEDefersAHost(t *testing.T) {
	mismatch := &smtpc.Error{Phase: smtpc.PhaseStartTLS, Err: fmt.Errorf("%w: %w", smtpc.ErrTLSHandshake,
		&tlspolicy.Failure{Result: tlsrpt.ValidationFailure, Enhanced: "4.7.5", Text: "the certificate does not match the TLSA records"})}
	broken := map[string]error{"_25._tcp.mx1.example.net": errors.New("SERVFAIL"), "_25._tcp.mx2.example.net": errors.New("SERVFAIL")}
	for _, tt := range []struct {
		name           string
		fail           map[string]error
		first          error
		onlyOne        bool
		typ            queue.EventType
		enhanced       string
		tls            string
		noted          string
		dials1, dials2 int
	}{
		{name: "well", typ: queue.Delivered, enhanced: "2.0.0", tls: "TLS1.3 TLS_AES_128_GCM_SHA256 dane", noted: "[example.net tlsa]", dials1: 1},
		{name: "first host's look-up fails", fail: map[string]error{"_25._tcp.mx1.example.net": errors.New("SERVFAIL")}, typ: queue.Delivered, enhanced: "2.0.0",
			tls: "TLS1.3 TLS_AES_128_GCM_SHA256 dane", noted: "[example.net tlsa dnssec-invalid example.net tlsa]", dials2: 1},
		{name: "all look-ups fail", fail: broken, typ: queue.TransientFailure, enhanced: "4.4.3", noted: "[example.net tlsa dnssec-invalid example.net tlsa dnssec-invalid]"},
		{name: "first host's certificate does not match", first: mismatch, typ: queue.Delivered, enhanced: "2.0.0",
			tls: "TLS1.3 TLS_AES_128_GCM_SHA256 dane", noted: "[example.net tlsa validation-failure example.net tlsa]", dials1: 1, dials2: 1},
	} {
		t.Run("E5-69 "+tt.name, func(t *testing.T) {
			n := newFakeNet()
			var dials []smtpc.Options
			inTLS(n, "mx1.example.net", &dials, tt.first)
			inTLS(n, "mx2.example.net", &dials, nil)
			names := tlsNames{fail: tt.fail, tlsa: map[string]mx.TLSAAnswer{"_25._tcp.mx1.example.net": digest, "_25._tcp.mx2.example.net": digest}}
			w, noted := tlsWorker(t, n, names, allSecure...)
			s := handleOne(t, w, testJob("bob@example.net"), &fakeMail{})
			f := s.Facts[0]
			if f.Type != tt.typ || f.Enhanced != tt.enhanced || f.TLS != tt.tls {
				t.Errorf("got %s %s %q %q", f.Type, f.Enhanced, f.TLS, f.Text)
			}
			if got := fmt.Sprint(noted.got); got != tt.noted {
				t.Errorf("noted %s, want %s", got, tt.noted)
			}
			if n.dialled("mx1.example.net") != tt.dials1 || n.dialled("mx2.example.net") != tt.dials2 {
				t.Errorf("got %d and %d dials", n.dialled("mx1.example.net"), n.dialled("mx2.example.net"))
			}
			for _, o := range dials {
				if o.TLS != smtpc.TLSVerify {
					t.Errorf("got mode %v", o.TLS)
				}
			}
		})
	}
}

// A connection serves another domain of its site only when their policies are the same.
func TestE5_69_ConnectionsByPolicy(t *testing.T) {
	n := newFakeNet()
	var dials []smtpc.Options
	inTLS(n, "mx1.example.net", &dials, nil)
	names := tlsNames{tlsa: map[string]mx.TLSAAnswer{"_25._tcp.mx1.example.net": digest}}
	w, _ := tlsWorker(t, n, names, allSecure...) // not example.org
	for _, rcpt := range []string{"bob@example.org", "bob@example.net", "eve@example.net", "eve@example.org"} {
		if s := handleOne(t, w, testJob(rcpt), &fakeMail{}); s.Facts[0].Type != queue.Delivered {
			t.Fatalf("got %+v", s)
		}
	}
	if len(dials) != 2 || dials[0].TLS != smtpc.TLSMay || dials[1].TLS != smtpc.TLSVerify {
		t.Errorf("got %d dials, want one without policy and one with DANE", len(dials))
	}
}

// Row E5-71: mail that needs REQUIRETLS comes back when it cannot be had, with its header only; a notification about it goes on without.
func TestE5_71_RequireTLS(t *testing.T) {
	lacks := &smtpc.Error{Phase: smtpc.PhaseEhlo, Err: smtpc.ErrNeedRequireTLS}
	away := &smtpc.Error{Phase: smtpc.PhaseConnect, Err: errors.New("connection refused")}
	for _, tt := range []struct {
		name          string
		secure        []string
		first, second error
		change        func(*queue.Job)
		typ           queue.EventType
		enhanced      string
	}{
		{name: "proven hosts", secure: allSecure, typ: queue.Delivered, enhanced: "2.0.0"},
		{name: "hosts not proven", typ: queue.Bounce, enhanced: "5.7.30"},
		{name: "no host offers it", secure: allSecure, first: lacks, second: lacks, typ: queue.Bounce, enhanced: "5.7.30"},
		{name: "the second host offers it", secure: allSecure, first: lacks, typ: queue.Delivered, enhanced: "2.0.0"},
		{name: "the second host is away", secure: allSecure, first: lacks, second: away, typ: queue.TransientFailure, enhanced: "4.4.1"},
		{name: "a notification goes on without", change: func(j *queue.Job) { j.ReversePath = address.Path{} }, typ: queue.Delivered, enhanced: "2.0.0"},
	} {
		t.Run("E5-71 "+tt.name, func(t *testing.T) {
			n := newFakeNet()
			var dials []smtpc.Options
			inTLS(n, "mx1.example.net", &dials, tt.first)
			inTLS(n, "mx2.example.net", &dials, tt.second)
			w, _ := tlsWorker(t, n, tlsNames{}, tt.secure...)
			job := testJob("bob@example.net")
			job.Flags.RequireTLS = true
			if tt.change != nil {
				tt.change(&job)
			}
			s := handleOne(t, w, job, &fakeMail{})
			if f := s.Facts[0]; f.Type != tt.typ || f.Enhanced != tt.enhanced {
				t.Fatalf("got %s %s %q", f.Type, f.Enhanced, f.Text)
			}
			for _, o := range dials {
				if want := !job.ReversePath.IsNull(); o.RequireTLS != want || (o.TLS == smtpc.TLSVerify) != want {
					t.Errorf("got mode %v, REQUIRETLS %t", o.TLS, o.RequireTLS)
				}
			}
			if tt.typ != queue.Bounce {
				return
			}
			notice := s.Notify[0]
			if !notice.Envelope.Flags.RequireTLS || strings.Contains(string(notice.Payload), "Good day.") || !strings.Contains(string(notice.Payload), "5.7.30") {
				t.Errorf("got notification %+v\n%s", notice.Envelope.Flags, notice.Payload)
			}
		})
	}
}

// Row E5-71: "TLS-Required: No" lowers what the domain wants to may, and is in no report.
func TestE5_71_TLSRequiredNo(t *testing.T) {
	n := newFakeNet()
	var dials []smtpc.Options
	inTLS(n, "mx1.example.net", &dials, nil)
	w, noted := tlsWorker(t, n, tlsNames{fail: map[string]error{"_25._tcp.mx1.example.net": errors.New("SERVFAIL")}}, allSecure...)
	job := testJob("bob@example.net")
	job.Flags.TLSOptional = true
	if s := handleOne(t, w, job, &fakeMail{}); s.Facts[0].Type != queue.Delivered || dials[0].TLS != smtpc.TLSMay || len(noted.got) != 0 {
		t.Errorf("got %+v, noted %v", s, noted.got)
	}
}

// A host whose handshake failed lately fails again in each report.
func TestE5_72_BrokenHostsAreReported(t *testing.T) {
	n := newFakeNet()
	n.set("mx1.example.net", func(_ context.Context, o smtpc.Options) (*fakeConn, error) {
		if o.TLS != smtpc.TLSNone {
			return nil, &smtpc.Error{Phase: smtpc.PhaseStartTLS, Err: fmt.Errorf("%w: no cipher in common", smtpc.ErrTLSHandshake)}
		}
		return &fakeConn{answer: func(ctx context.Context, n int, m smtpc.Message) (smtpc.Result, error) {
			res, _ := ok(ctx, n, m)
			return res, errors.New("closed") // so that the next one dials
		}}, nil
	})
	w, noted := tlsWorker(t, n, tlsNames{})
	for range 2 {
		if s := handleOne(t, w, testJob("bob@example.net"), &fakeMail{}); s.Facts[0].Type != queue.Delivered {
			t.Fatalf("got %+v", s)
		}
	}
	if got, want := fmt.Sprint(noted.got), "[example.net no-policy-found validation-failure example.net no-policy-found validation-failure]"; got != want {
		t.Errorf("noted %s, want %s", got, want)
	}
}

// However many hosts lack what REQUIRETLS needs, all of them are asked before the mail comes back.
func TestE5_71_EveryHostIsAsked(t *testing.T) {
	refused := &smtpc.Error{Phase: smtpc.PhaseStartTLS, Reply: &smtpc.Reply{Code: 454, Lines: []string{"no"}, Phase: smtpc.PhaseStartTLS}, Err: smtpc.ErrTLSRequired}
	n := newFakeNet()
	var dials []smtpc.Options
	records := mxtest.Records{MX: map[string][]mx.MX{}, Hosts: map[string][]string{}, Secure: map[string]bool{"example.net": true}}
	for i := range 4 {
		host := fmt.Sprintf("mx%d.example.net", i)
		records.MX["example.net"] = append(records.MX["example.net"], mx.MX{Host: host, Preference: uint16(i)})
		records.Hosts[host], records.Secure[host] = []string{fmt.Sprintf("198.51.100.%d", i+1)}, true
		if i < 3 {
			inTLS(n, host, &dials, refused)
		} else {
			inTLS(n, host, &dials, nil)
		}
	}
	w := workerWith(t, n, func(o *Options) {
		o.Resolver, o.TLSPolicies = records, tlspolicy.New(tlspolicy.Options{Names: tlsNames{}})
	})
	job := testJob("bob@example.net")
	job.Flags.RequireTLS = true
	if s := handleOne(t, w, job, &fakeMail{}); s.Facts[0].Type != queue.Delivered || len(dials) != 4 {
		t.Errorf("got %+v after %d dials", s.Facts, len(dials))
	}
}
