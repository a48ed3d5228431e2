package tlsrpt

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"mime/multipart"
	"net/http"
	"net/mail"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"postroad/delivery/mx"
	"postroad/queue"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a Store.
type memory struct {
	mu  sync.Mutex
	rev uint64
	m   map[string]stored
}

type stored struct {
	data []byte
	rev  uint64
}

func (s *memory) Get(_ context.Context, key string) ([]byte, uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.m[key].data, s.m[key].rev, nil
}

func (s *memory) Put(_ context.Context, key string, value []byte, revision uint64, _ time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m[key].rev != revision {
		return fmt.Errorf("put: %w", ErrChanged)
	}
	if s.m == nil {
		s.m = make(map[string]stored)
	}
	s.rev++
	s.m[key] = stored{value, s.rev}
	return nil
}

func (s *memory) Keys(context.Context) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var keys []string
	for _, k := range slices.Sorted(maps.Keys(s.m)) {
		if len(s.m[k].data) > 0 {
			keys = append(keys, k)
		}
	}
	return keys, nil
}

// names are records by domain.
type names map[string]string

func (n names) LookupTXT(_ context.Context, name string) ([]string, error) {
	record, ok := n[strings.TrimPrefix(name, "_smtp._tls.")]
	switch {
	case record == "SERVFAIL":
		return nil, errors.New("SERVFAIL")
	case !ok:
		return nil, mx.ErrNoName
	}
	return []string{record}, nil
}

// posts is a server for reports.
type posts struct {
	mu     sync.Mutex
	status int
	got    [][]byte
}

func (p *posts) RoundTrip(r *http.Request) (*http.Response, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	if r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/tlsrpt+gzip" {
		return nil, fmt.Errorf("got %s %v", r.Method, r.Header)
	}
	p.got = append(p.got, body)
	return &http.Response{StatusCode: p.status, Status: fmt.Sprint(p.status), Body: http.NoBody}, nil
}

func (p *posts) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.got)
}

// outbox is the queue.
type outbox struct {
	mu   sync.Mutex
	envs map[queue.MessageID]queue.Envelope
	text map[queue.MessageID]string
}

func (o *outbox) put(_ context.Context, id queue.MessageID, env queue.Envelope, payload []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.envs == nil {
		o.envs, o.text = make(map[queue.MessageID]queue.Envelope), make(map[queue.MessageID]string)
	}
	o.envs[id], o.text[id] = env, string(payload)
	return nil
}

func (o *outbox) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.envs)
}

var good = Result{Domain: "example.net", Policy: Policy{Type: STS, Strings: []string{"version: STSv1", "mode: enforce"}, Domain: "example.net", MXHosts: []string{"*.example.net"}}}

func bad(result ResultType, mx string) Result {
	r := good
	r.Failure = Failure{Result: result, MX: mx, ReceivingIP: "192.0.2.1", Reason: "because\r\n"}
	return r
}

func unpack(t *testing.T, gz []byte) report {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(gz))
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.NewDecoder(z).Decode(&r); err != nil {
		t.Fatal(err)
	}
	return r
}

// Row E5-72: what all processes count in a UTC day becomes one report, sent once, at a time of the domain's own (RFC 8460 §4, §5).
func TestE5_72_Report(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, web, box := &memory{}, &posts{status: 200}, &outbox{}
		n := names{"example.net": "v=TLSRPTv1; rua=mailto:tls@reports.example.net,https://reports.example.net/tls", "quiet.test": "v=spf1 -all"}
		ctx, cancel := context.WithCancel(t.Context())
		one, two := NewBook(BookOptions{Store: store, Names: n}), NewBook(BookOptions{Store: store, Names: n})
		s := NewSender(SenderOptions{Store: store, Names: n, Mail: box.put, Web: &http.Client{Transport: web}, Domain: "relay.example.org", Organization: "Example", Contact: "postmaster@example.org"})
		var wg sync.WaitGroup
		wg.Go(func() { one.Run(ctx) })
		wg.Go(func() { two.Run(ctx) })
		wg.Go(func() { s.Run(ctx) })

		one.Note(good)
		two.Note(good)
		two.Note(bad(HostMismatch, "mx1.example.net"))
		one.Note(bad(HostMismatch, "mx1.example.net"))
		one.Note(bad(CertificateExpired, "mx2.example.net"))
		one.Note(Result{Domain: "example.net", Policy: Policy{Type: NoPolicy, Domain: "example.net"}})
		one.Note(Result{Domain: "quiet.test", Policy: Policy{Type: NoPolicy, Domain: "quiet.test"}})
		time.Sleep(flushEvery + time.Second)
		if keys, _ := store.Keys(ctx); !slices.Equal(keys, []string{"2000-01-01 example.net"}) {
			t.Errorf("got %q, want the domain that asks for reports", keys)
		}
		one.Note(good)
		time.Sleep(24*time.Hour - 2*flushEvery)
		one.Note(good) // five minutes to midnight
		if web.count() > 0 || box.count() > 0 {
			t.Error("sent before the day was over")
		}
		time.Sleep(settleTime + spreadOver + time.Hour)
		one.Note(good) // another day's
		cancel()
		wg.Wait()
		if len(web.got) != 1 || len(box.envs) != 1 {
			t.Fatalf("got %d posts and %d mails, want one of each", len(web.got), len(box.envs))
		}
		got := unpack(t, web.got[0])
		want := []policyReport{
			{good.Policy, summary{4, 3}, []Failure{
				{Result: HostMismatch, MX: "mx1.example.net", ReceivingIP: "192.0.2.1", Sessions: 2, Reason: "because??"},
				{Result: CertificateExpired, MX: "mx2.example.net", ReceivingIP: "192.0.2.1", Sessions: 1, Reason: "because??"}}},
			{Policy{Type: NoPolicy, Domain: "example.net"}, summary{1, 0}, nil},
		}
		for i := range got.Policies {
			slices.SortFunc(got.Policies[i].Failures, func(a, b Failure) int { return strings.Compare(a.MX, b.MX) })
		}
		slices.SortFunc(got.Policies, func(a, b policyReport) int { return -strings.Compare(string(a.Policy.Type), string(b.Policy.Type)) })
		if diff := cmp.Diff(want, got.Policies); diff != "" {
			t.Errorf("policies (-want +got):\n%s", diff)
		}
		day := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
		if got.Organization != "Example" || got.Contact != "postmaster@example.org" || got.ID == "" || !got.DateRange.Start.Equal(day) || !got.DateRange.End.Equal(day.Add(24*time.Hour-time.Second)) {
			t.Errorf("got %+v", got)
		}
		for id, env := range box.envs {
			checkMail(t, env, box.text[id], got)
		}
		if keys, _ := store.Keys(t.Context()); !slices.Equal(keys, []string{"2000-01-02 example.net"}) {
			t.Errorf("left over: %q", keys)
		}
	})
}

func checkMail(t *testing.T, env queue.Envelope, text string, want report) {
	t.Helper()
	if !env.ReversePath.IsNull() || !env.Flags.TLSOptional || env.HeaderFrom != "relay.example.org" || env.Recipients[0].Path.String() != "tls@reports.example.net" {
		t.Errorf("got envelope %+v", env)
	}
	m, err := mail.ReadMessage(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	if m.Header.Get("TLS-Report-Domain") != "example.net" || m.Header.Get("TLS-Report-Submitter") != "relay.example.org" || m.Header.Get("TLS-Required") != "No" ||
		m.Header.Get("Subject") != "Report Domain: example.net Submitter: relay.example.org Report-ID: <"+want.ID+">" {
		t.Errorf("got %v", m.Header)
	}
	kind, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/report" || params["report-type"] != "tlsrpt" {
		t.Fatalf("got %s %v, %v", kind, params, err)
	}
	parts := multipart.NewReader(m.Body, params["boundary"])
	if _, err := parts.NextPart(); err != nil {
		t.Fatal(err)
	}
	p, err := parts.NextPart()
	if err != nil {
		t.Fatal(err)
	}
	name := p.FileName()
	if p.Header.Get("Content-Type") != "application/tlsrpt+gzip" || !strings.HasPrefix(name, "relay.example.org!example.net!946684800!946771199!") || !strings.HasSuffix(name, ".json.gz") {
		t.Errorf("got %v", p.Header)
	}
	gz, err := io.ReadAll(base64.NewDecoder(base64.StdEncoding, p))
	if err != nil {
		t.Fatal(err)
	}
	if got := unpack(t, gz); got.ID != want.ID {
		t.Errorf("got %+v", got)
	}
	for line := range strings.Lines(text) {
		if len(line) > 1000 || !strings.HasSuffix(line, "\r\n") {
			t.Errorf("got line %q", line)
		}
	}
}

// A report that one destination refuses is sent there again, and not to the others; another process goes on with the same id.
func TestE5_72_ReportIsRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, web, box := &memory{}, &posts{status: 503}, &outbox{}
		n := names{"example.net": "v=TLSRPTv1;rua=https://reports.example.net/tls,mailto:tls@example.net"}
		b := NewBook(BookOptions{Store: store, Names: n})
		b.Note(good)
		b.flush(t.Context())
		o := SenderOptions{Store: store, Names: n, Mail: box.put, Web: &http.Client{Transport: web}, Domain: "relay.example.org"}
		run := func(d time.Duration) {
			ctx, cancel := context.WithTimeout(t.Context(), d)
			defer cancel()
			NewSender(o).Run(ctx)
		}
		run(24*time.Hour + settleTime + spreadOver + retryAfter + time.Minute)
		if len(web.got) < 2 || len(box.envs) != 1 {
			t.Fatalf("got %d posts and %d mails, want the post repeated", len(web.got), len(box.envs))
		}
		web.mu.Lock()
		web.status = 204
		web.mu.Unlock()
		run(time.Minute)
		first, last := unpack(t, web.got[0]), unpack(t, web.got[len(web.got)-1])
		if len(box.envs) != 1 || first.ID != last.ID {
			t.Errorf("got %d mails, ids %q and %q", len(box.envs), first.ID, last.ID)
		}
		if keys, _ := store.Keys(t.Context()); len(keys) > 0 {
			t.Errorf("left over: %q", keys)
		}
	})
}

// slowNames takes as long as it may for the record of each domain but one, and notes how many it is asked for at a time.
type slowNames struct {
	mu        sync.Mutex
	now, most int
}

func (n *slowNames) LookupTXT(ctx context.Context, name string) ([]string, error) {
	if name == "_smtp._tls.example.net" {
		return []string{"v=TLSRPTv1; rua=mailto:tls@example.net"}, nil
	}
	n.mu.Lock()
	n.now++
	n.most = max(n.most, n.now)
	n.mu.Unlock()
	<-ctx.Done()
	n.mu.Lock()
	n.now--
	n.mu.Unlock()
	return nil, ctx.Err()
}

// TestSlowDomainsDelayNobody: reports go out beside look-ups that do not end, of which there are only so many at a time.
func TestSlowDomainsDelayNobody(t *testing.T) {
	for _, slow := range []int{sendWidth - 1, 3 * sendWidth} {
		synctest.Test(t, func(t *testing.T) {
			store, box, n := &memory{}, &outbox{}, &slowNames{}
			put := func(domain string) {
				if err := update(t.Context(), store, "1999-12-25 "+domain, func(e *entry) { e.Tally.add(good) }); err != nil {
					t.Fatal(err)
				}
			}
			for i := range slow {
				put(fmt.Sprintf("d%d.test", i))
			}
			put("example.net")
			s := NewSender(SenderOptions{Store: store, Names: n, Mail: box.put, Domain: "relay.example.org"})
			start := time.Now()
			go s.look(t.Context())
			synctest.Wait()
			if slow < sendWidth && box.count() != 1 {
				t.Errorf("the report waits for %d slow domains", slow)
			}
			time.Sleep(time.Duration(slow/sendWidth+2) * sendTimeout)
			if box.count() != 1 || n.most != min(slow, sendWidth) {
				t.Errorf("after %v: got %d reports, and %d look-ups at a time, want 1 and %d", time.Since(start), box.count(), n.most, min(slow, sendWidth))
			}
		})
	}
}

// What cannot be added is kept, and bounded.
func TestBookKeepsCounts(t *testing.T) {
	n := names{"example.net": "SERVFAIL"}
	store := &memory{}
	b := NewBook(BookOptions{Store: store, Names: n})
	b.Note(good)
	b.flush(t.Context())
	b.Note(good)
	n["example.net"] = "v=TLSRPTv1; rua=mailto:tls@example.net"
	b.flush(t.Context())
	keys, _ := store.Keys(t.Context())
	e, _, err := load(t.Context(), store, keys[0])
	if err != nil || e.Tally.Policies[0].Good != 2 {
		t.Errorf("got %+v, %v", e, err)
	}
	for i := range maxDomains + 10 {
		b.Note(Result{Domain: fmt.Sprintf("d%d.test", i)})
	}
	if len(b.tallies) != maxDomains {
		t.Errorf("got %d domains", len(b.tallies))
	}
	var all Tally
	for i := range 200 {
		r := bad(ValidationFailure, fmt.Sprintf("mx%d.test", i))
		all.add(r)
		r.Policy.Domain = r.Failure.MX
		all.add(r)
	}
	if len(all.Policies) != maxPolicies || len(all.Policies[0].Failures) != maxFailures || all.Policies[0].Bad != 200 {
		t.Errorf("got %d policies, %d failures of %d", len(all.Policies), len(all.Policies[0].Failures), all.Policies[0].Bad)
	}
}

// Counts of a day whose report may be on its way are given up.
func TestBookGivesUpOldCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBook(BookOptions{Store: &memory{}, Names: names{"example.net": "SERVFAIL"}})
		b.Note(good)
		for _, want := range []int{1, 0} {
			b.flush(t.Context())
			if len(b.tallies) != want {
				t.Errorf("got %d tallies, want %d", len(b.tallies), want)
			}
			time.Sleep(24*time.Hour + settleTime + time.Second)
		}
	})
}

func TestParseRecord(t *testing.T) {
	for _, tt := range []struct {
		records []string
		want    string
	}{
		{[]string{"v=TLSRPTv1; rua=mailto:a@example.net"}, "mailto:a@example.net"},
		{[]string{"v=TLSRPTv1;rua=mailto:a@example.net,https://x.test/y?z;"}, "mailto:a@example.net https://x.test/y?z"},
		{[]string{"other", "v=TLSRPTv1 ; x=y ; rua = mailto:a@example.net , http://x.test"}, "mailto:a@example.net"},
		{[]string{"v=TLSRPTv1; rua=mailto:a%2Bb@example.net?subject=x"}, "mailto:a%2Bb@example.net?subject=x"},
		{[]string{"v=TLSRPTv1; rua=mailto:a@example.net", "v=TLSRPTv1; rua=mailto:b@example.net"}, ""},
		{[]string{"v=TLSRPTv2; rua=mailto:a@example.net"}, ""},
		{[]string{"v=TLSRPTv1; rua=mailto:nobody,ftp://x.test,https://,https://u:p@x.test"}, ""},
		{[]string{"v=TLSRPTv1"}, ""},
		{nil, ""},
	} {
		if got := strings.Join(parseRecord(tt.records), " "); got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.records, got, tt.want)
		}
	}
	if p, ok := mailbox("mailto:a%2Bb@example.net?subject=x"); !ok || p.String() != "a+b@example.net" {
		t.Errorf("got %s, %t", p, ok)
	}
}

func FuzzParseRecord(f *testing.F) {
	for _, s := range []string{"v=TLSRPTv1; rua=mailto:a@example.net", "v=TLSRPTv1;rua=https://x.test/,mailto:%40", "v=TLSRPTv1;;rua=,,;", "v=TLSRPTv1; rua=mailto:a%0d%0ab@x.test"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, record string) {
		uris := parseRecord([]string{record})
		if len(uris) > maxDestinations {
			t.Errorf("got %d", len(uris))
		}
		for _, uri := range uris {
			p, isMail := mailbox(uri)
			if !isMail && !isHTTPS(uri) || strings.ContainsAny(p.String(), "\r\n") {
				t.Errorf("got %q", uri)
			}
		}
	})
}
