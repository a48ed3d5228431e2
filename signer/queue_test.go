package signer_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-msgauth/dkim"

	"postroad/queue"
	"postroad/queue/address"
	"postroad/queue/embedded"
	"postroad/signer"
	"postroad/signer/keyring"
)

// road is a real queue with a signer on it and a delivery that keeps what comes.
type road struct {
	q       *queue.Queue
	secrets string
	records map[string]string
	came    chan delivered
	notify  chan queue.Notification // one is sent with the next delivery
}

type delivered struct {
	job     queue.Job
	content string
}

// build starts a road; everything ends with the test.
func build(t *testing.T, o signer.Options) *road {
	t.Helper()
	r := &road{secrets: t.TempDir(), records: make(map[string]string), came: make(chan delivered, 10), notify: make(chan queue.Notification, 1)}
	if err := os.Mkdir(filepath.Join(r.secrets, "dkim"), 0o700); err != nil {
		t.Fatal(err)
	}
	server, err := embedded.Start(embedded.Options{Dir: t.TempDir(), MaxBytes: queue.StoreBytes(1 << 30),
		OnFatal: func(err error) { t.Errorf("store: %v", err) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ended(t, server.Stop) })
	r.q, err = queue.Open(t.Context(), queue.Options{Connect: server.Connect, Node: "test", MaxBytes: 1 << 30, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ended(t, r.q.Close) })

	keys, err := keyring.NewDir(keyring.DirOptions{Path: r.secrets, Refresh: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	o.Queue, o.Keys = r.q, keys
	s, err := signer.New(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { ended(t, s.Stop) })

	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	wg.Go(func() {
		if err := r.q.Deliver(ctx, 4, func(ctx context.Context, d *queue.Delivery) { r.deliver(ctx, t, d) }); err != nil {
			t.Errorf("deliver: %v", err)
		}
	})
	return r
}

func ended(t *testing.T, stop func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := stop(ctx); err != nil {
		t.Error(err)
	}
}

func (r *road) deliver(ctx context.Context, t *testing.T, d *queue.Delivery) {
	content, err := d.Open(ctx)
	if errors.Is(err, queue.ErrGone) {
		return
	}
	if err != nil {
		t.Errorf("open: %v", err)
		return
	}
	data, err := io.ReadAll(content)
	if err := errors.Join(err, content.Close()); err != nil {
		t.Errorf("read: %v", err)
		return
	}
	var end queue.Settlement
	select {
	case n := <-r.notify:
		end.Notify = append(end.Notify, n)
	default:
	}
	if err := d.Settle(ctx, end); err != nil {
		t.Errorf("settle: %v", err)
		return
	}
	r.came <- delivered{d.Job, string(data)}
}

// key makes a key that verifiers will find.
func (r *road) key(t *testing.T, domain, selector string, algorithm keyring.Algorithm) {
	t.Helper()
	k, err := keyring.Generate(r.secrets, domain, selector, algorithm)
	if err != nil {
		t.Fatal(err)
	}
	r.records[selector+"._domainkey."+domain] = keyring.Record(k)
}

func (r *road) accept(t *testing.T, from, content string, rcpts ...string) queue.MessageID {
	t.Helper()
	env := queue.Envelope{ReversePath: address.Path{Local: "alice", Domain: from}, HeaderFrom: from, Accepted: time.Now()}
	for _, rcpt := range rcpts {
		local, domain, _ := strings.Cut(rcpt, "@")
		env.Recipients = append(env.Recipients, queue.Recipient{Path: address.Path{Local: local, Domain: domain}})
	}
	id := r.q.NewID()
	if err := r.q.Accept(t.Context(), id, env, strings.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	return id
}

// next is what comes next, its signatures being good ones of domain.
func (r *road) next(t *testing.T, domain string, signatures int) delivered {
	t.Helper()
	var d delivered
	select {
	case d = <-r.came:
	case <-time.After(time.Minute):
		t.Fatal("nothing came")
	}
	got, err := dkim.VerifyWithOptions(strings.NewReader(d.content), &dkim.VerifyOptions{
		LookupTXT: func(name string) ([]string, error) { return []string{r.records[name]}, nil },
	})
	if err != nil || len(got) != signatures {
		t.Errorf("got %d signatures, %v, want %d", len(got), err, signatures)
	}
	for _, v := range got {
		if v.Err != nil || v.Domain != domain {
			t.Errorf("signature of %s: %v, want a good one of %s", v.Domain, v.Err, domain)
		}
	}
	return d
}

func letter(from, body string) string {
	return "From: Alice <alice@" + from + ">\r\nTo: bob@example.net\r\nSubject: x\r\n\r\n" + body
}

func TestRoad(t *testing.T) {
	r := build(t, signer.Options{OwnDomain: "relay.example", Expiry: 8 * 24 * time.Hour})
	for _, domain := range []string{"example.com", "relay.example"} {
		r.key(t, domain, "r1", keyring.RSA)
		r.key(t, domain, "e1", keyring.Ed25519)
	}

	t.Run("small, two parts", func(t *testing.T) {
		content := letter("example.com", "Hello.\r\n")
		id := r.accept(t, "example.com", content, "bob@example.net", "carol@example.org")
		for range 2 {
			if d := r.next(t, "example.com", 2); d.job.ID != id || !strings.HasSuffix(d.content, content) {
				t.Errorf("got another message: %q", d.content)
			}
		}
		want := "d=example.com s=r1 a=rsa-sha256, d=example.com s=e1 a=ed25519-sha256"
		if got := r.traced(t, id); got != want {
			t.Errorf("trace: got %q, want %q", got, want)
		}
	})

	t.Run("large, in chunks", func(t *testing.T) {
		content := letter("example.com", strings.Repeat(strings.Repeat("0123456789", 7)+"\r\n", 60_000))
		r.accept(t, "example.com", content, "bob@example.net")
		if d := r.next(t, "example.com", 2); !strings.HasSuffix(d.content, content) {
			t.Errorf("got another message of %d octets", len(d.content))
		}
	})

	t.Run("notification", func(t *testing.T) {
		// It is our own domain that signs, whatever the maker says.
		r.notify <- queue.Notification{Key: "failed",
			Envelope: queue.Envelope{HeaderFrom: "example.com", Accepted: time.Now(),
				Recipients: []queue.Recipient{{Path: address.Path{Local: "alice", Domain: "example.com"}}}},
			Payload: []byte(letter("example.com", "It failed.\r\n"))}
		r.accept(t, "example.com", letter("example.com", "Hello.\r\n"), "bob@example.net")
		r.next(t, "example.com", 2)
		if d := r.next(t, "relay.example", 2); d.job.Kind != queue.KindDSN {
			t.Errorf("got kind %q, want %q", d.job.Kind, queue.KindDSN)
		}
	})

	t.Run("held until there is a key", func(t *testing.T) {
		id := r.accept(t, "late.example", letter("late.example", "Hello.\r\n"), "bob@example.net")
		e := r.waiting(t, id)
		if e.Job.Reason != "no DKIM key for late.example" || !e.Job.Unsigned {
			t.Errorf("got %+v, want the reason", e.Job)
		}
		r.key(t, "late.example", "r1", keyring.RSA)
		time.Sleep(100 * time.Millisecond) // past Refresh
		if n, err := r.q.Retry(t.Context(), queue.Selection{ID: id}); err != nil || n != 1 {
			t.Fatalf("retry: got %d, %v, want 1", n, err)
		}
		if d := r.next(t, "late.example", 1); d.job.ID != id {
			t.Errorf("got message %s, want %s", d.job.ID, id)
		}
	})
}

// waiting is the entry of a message once it has been put aside.
func (r *road) waiting(t *testing.T, id queue.MessageID) queue.Entry {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		for e, err := range r.q.List(t.Context(), queue.Selection{ID: id}, 0) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Place == queue.PlaceLater {
				return e
			}
		}
	}
	t.Fatal("the mail was not put aside")
	return queue.Entry{}
}

// traced is the text of the signer's event for a message.
func (r *road) traced(t *testing.T, id queue.MessageID) string {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		for e, err := range r.q.Trace(t.Context(), queue.TraceFilter{ID: id}) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Type == queue.Signed {
				return e.Text
			}
		}
	}
	t.Fatal("the signer left no event")
	return ""
}

// TestRoadOutage takes the directory of keys away: mail is accepted and waits,
// untouched, and goes when the keys are back.
func TestRoadOutage(t *testing.T) {
	r := build(t, signer.Options{})
	r.key(t, "example.com", "r1", keyring.RSA)
	root := filepath.Join(r.secrets, "dkim")
	if err := os.Rename(root, root+".away"); err != nil {
		t.Fatal(err)
	}
	const mails = 30
	ids := make(map[queue.MessageID]bool)
	for range mails {
		ids[r.accept(t, "example.com", letter("example.com", "Hello.\r\n"), "bob@example.net")] = true
	}
	var incoming uint64
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		c, err := r.q.Counts(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if incoming = c.Incoming; c.Later[queue.Class("1m")] > 0 {
			break
		}
	}
	if incoming < mails-8 {
		t.Errorf("got %d mails untouched, want at least %d", incoming, mails-8)
	}
	if err := os.Rename(root+".away", root); err != nil {
		t.Fatal(err)
	}
	for range mails - 8 { // what was counted may have been put aside since
		delete(ids, r.next(t, "example.com", 1).job.ID)
	}
	if len(ids) > 8 {
		t.Errorf("%d mails are still on their way, want at most 8", len(ids))
	}
	if _, err := r.q.Retry(t.Context(), queue.Selection{}); err != nil {
		t.Fatal(err)
	}
	for len(ids) > 0 {
		delete(ids, r.next(t, "example.com", 1).job.ID)
	}
}

// TestE6_79_IncomingIsNotSigned: what anybody may have sent bears no signature of ours, whatever its author claims to be.
func TestE6_79_IncomingIsNotSigned(t *testing.T) {
	r := build(t, signer.Options{MissingKey: signer.Hold})
	r.key(t, "example.org", "s1", keyring.RSA)
	env := queue.Envelope{Incoming: true, HeaderFrom: "example.org", Accepted: time.Now(),
		Recipients: []queue.Recipient{{Path: address.Path{Local: "bounces+x", Domain: "bounces.example.org"}, Notify: []string{"NEVER"}}}}
	for _, from := range []string{"example.org", "unknown.example"} {
		env.HeaderFrom = from
		if err := r.q.Accept(t.Context(), r.q.NewID(), env, strings.NewReader(letter(from, "boo"))); err != nil {
			t.Fatal(err)
		}
		if d := r.next(t, "example.org", 0); !d.job.Incoming {
			t.Errorf("got job %+v, want one that says where it is from", d.job)
		}
	}
}
