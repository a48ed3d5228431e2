package dkim_test

import (
	"context"
	"errors"
	"iter"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"postroad/cmd/internal/config"
	"postroad/cmd/internal/dkim"
	"postroad/cmd/internal/dkim/dnstest"
	"postroad/cmd/internal/ops"
	"postroad/queue"
	"postroad/signer/keyring"
	"postroad/signer/rotation"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const domain = "example.com"

// settings are a configuration whose DNS is a test's.
func settings(s *dnstest.Server) *config.Config {
	c := config.Default()
	c.Signer.Rotation.Resolvers = []string{s.Addr()}
	c.Signer.Rotation.NameServerPort = s.Port()
	return &c
}

func directory(t *testing.T) *keyring.Dir {
	t.Helper()
	dir, err := keyring.NewDir(keyring.DirOptions{Path: t.TempDir(), Refresh: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// jobs is a queue of jobs with these signatures.
type jobs struct {
	mu       sync.Mutex
	fields   []string
	err      error
	authors  []string // of mails that wait
	lists    int
	retried  []queue.Selection
	notified []string
}

func (j *jobs) entries() iter.Seq2[queue.Entry, error] {
	return func(yield func(queue.Entry, error) bool) {
		for _, f := range j.fields {
			if !yield(queue.Entry{Job: queue.Job{Signatures: f}}, nil) {
				return
			}
		}
		if j.err != nil {
			yield(queue.Entry{}, j.err)
		}
	}
}

// List implements dkim.Queue.
func (j *jobs) List(_ context.Context, sel queue.Selection, _ int) iter.Seq2[queue.Entry, error] {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.lists++; sel.Unsigned {
		return j.waiting()
	}
	if sel.SignedBy != dkim.AnyKey {
		return func(yield func(queue.Entry, error) bool) {
			yield(queue.Entry{}, errors.New("want what bears any signature"))
		}
	}
	return j.entries()
}

// waiting are jobs that wait for keys of their authors.
func (j *jobs) waiting() iter.Seq2[queue.Entry, error] {
	return func(yield func(queue.Entry, error) bool) {
		for i, author := range j.authors {
			e := queue.Entry{Place: queue.PlaceLater, Job: queue.Job{ID: queue.MessageID(strconv.Itoa(i)), Unsigned: true}}
			e.Job.HeaderFrom = author
			if !yield(e, nil) {
				return
			}
		}
	}
}

// Retry implements dkim.Queue.
func (j *jobs) Retry(_ context.Context, sel queue.Selection) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.retried = append(j.retried, sel)
	return 1, nil
}

// Notify implements dkim.Queue.
func (j *jobs) Notify(_ context.Context, topic, name string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.notified = append(j.notified, topic+" "+name)
	return nil
}

// listed is an admin socket.
type listed struct{ jobs *jobs }

// List implements dkim.Lister.
func (l listed) List(_ context.Context, sel ops.Selection, _ int) iter.Seq2[queue.Entry, error] {
	if sel.SignedBy != "s1._domainkey.example.com" {
		return func(yield func(queue.Entry, error) bool) { yield(queue.Entry{}, errors.New("asked for "+sel.SignedBy)) }
	}
	return l.jobs.entries()
}

func signed(names ...string) string {
	var b strings.Builder
	for _, name := range names {
		selector, domain, _ := strings.Cut(name, "@")
		b.WriteString("DKIM-Signature: a=rsa-sha256; bh=x=; d=" + domain + ";\r\n\th=From:d=other.example; s=" + selector + ";\r\n b=s=9\r\n")
	}
	return b.String()
}

func TestCount(t *testing.T) {
	j := &jobs{fields: []string{"x", "y", "z"}}
	if n, err := dkim.Count(listed{j}).Queued(t.Context(), domain, "s1"); n != 3 || err != nil {
		t.Errorf("got %d, %v, want 3", n, err)
	}
	j.err = errors.New("broke off")
	if _, err := dkim.Count(listed{j}).Queued(t.Context(), domain, "s1"); err == nil {
		t.Error("got a number of a listing that broke off")
	}
}

func TestTally(t *testing.T) {
	j := &jobs{fields: []string{signed("r1@example.com", "e1@example.com"), signed("R1@Example.com", "r1@example.com"), "", signed("r1@other.example")}}
	got, err := dkim.TallyOf(j.entries())
	want := map[string]int{"r1._domainkey.example.com": 2, "e1._domainkey.example.com": 1, "r1._domainkey.other.example": 1}
	if err != nil || len(got) != len(want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	for name, n := range want {
		if got[name] != n {
			t.Errorf("%s: got %d, want %d", name, got[name], n)
		}
	}
	j.err = errors.New("broke off")
	if got, err := dkim.TallyOf(j.entries()); err == nil {
		t.Errorf("got %v of a listing that broke off", got)
	}
}

// TestPolicy: what the configuration says and what it leaves open.
func TestPolicy(t *testing.T) {
	c := config.Default()
	p := dkim.PolicyOf(&c)
	if p.Settle != 10*time.Second || p.Resolvers != 1 || p.MaxQueueAge != c.Delivery.MaxAge || p.RotateEvery != 0 {
		t.Errorf("got %+v", p)
	}
	c.Secrets.Vault.Address = "https://vault.example.com"
	c.Signer.Rotation.Resolvers = []string{"192.0.2.1:53", "192.0.2.2:53", "192.0.2.3:53"}
	c.Signer.Rotation.Every = time.Hour
	p = dkim.PolicyOf(&c)
	if p.Settle != 35*time.Second || p.Settle != dkim.Settle(&c) || p.Resolvers != 3 || p.RotateEvery != time.Hour {
		t.Errorf("got %+v", p)
	}
}

// TestAcceptDead: a dead name server stops an activation until somebody says that it may be dead.
func TestAcceptDead(t *testing.T) {
	s := dnstest.Start(t, domain)
	s.AddServer("ns2."+domain, "127.0.0.99") // nobody is there
	c, store := settings(s), directory(t)
	rotator := func(dead ...string) *rotation.Rotator {
		t.Helper()
		r, err := dkim.New(dkim.Options{Config: c, Store: store, Sent: dkim.Count(listed{&jobs{}}), By: "test", AcceptDead: dead})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	made, err := rotator().New(t.Context(), domain)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range made.Done {
		s.Set(rotation.Name(domain, a.Selector), a.Entry.Record)
	}
	selector := made.Done[0].Selector
	_, err = rotator().Move(t.Context(), domain, selector, keyring.Published, false)
	if err == nil || !strings.Contains(err.Error(), "ns2.example.com 127.0.0.99") || !strings.Contains(err.Error(), "--accept-dead ns2.example.com goes on") {
		t.Errorf("got %v, want the server and what to do", err)
	}
	pass, err := rotator("NS2.example.com.").Move(t.Context(), domain, selector, keyring.Published, false)
	if err != nil || len(pass.Done) != 1 || !strings.Contains(pass.Done[0].Entry.History[1].Why, "accepted that nobody answers at ns2.example.com") {
		t.Errorf("got %+v, %v", pass, err)
	}
	// One that has something else is not dead.
	s.Set(rotation.Name(domain, made.Done[1].Selector), "v=DKIM1; p=")
	if _, err = rotator("ns1.example.com", "127.0.0.99").Move(t.Context(), domain, made.Done[1].Selector, keyring.Published, false); err == nil {
		t.Error("a wrong record was accepted")
	}
	if _, err = rotator("ns1.example.com", "127.0.0.1", "ns2.example.com").Move(t.Context(), domain, made.Done[1].Selector, keyring.Published, false); err == nil {
		t.Error("a wrong record was accepted")
	}
}

// TestKeeper takes a new domain into force by itself, and lets mail go that waited for it.
func TestKeeper(t *testing.T) {
	s := dnstest.Start(t, domain)
	c, store, j := settings(s), directory(t), &jobs{}
	c.Signer.Rotation.Automatic, c.Signer.Rotation.Hook = true, s.Hook(t)
	k, err := dkim.NewKeeper(dkim.KeeperOptions{Config: c, Store: store, Queue: j, OwnDomain: "relay.example", By: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	r, err := dkim.New(dkim.Options{Config: c, Store: store, Sent: dkim.Count(listed{j}), By: "test"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.New(t.Context(), domain); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { k.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if keys, err := store.Keys(t.Context(), domain); err == nil && len(keys) == 2 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("keys do not sign after a minute: %v", k.Conditions())
		}
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		j.mu.Lock()
		want := []queue.Selection{{Author: domain, Unsigned: true}, {Author: "." + domain, Unsigned: true}}
		done := slices.Equal(j.retried, want) && slices.Contains(j.notified, "dkim "+domain)
		if !done && time.Now().After(deadline) {
			t.Errorf("got retries %+v and notices %q", j.retried, j.notified)
			done = true
		}
		j.mu.Unlock()
		if done {
			break
		}
	}
	entries, err := store.Entries(t.Context(), domain)
	if err != nil || len(entries) != 2 || s.Get(rotation.Name(domain, entries[0].Selector)) != entries[0].Record {
		t.Errorf("got %v, %v, want what the hook has published", entries, err)
	}
}

func TestKeeperNotWanted(t *testing.T) {
	s := dnstest.Start(t, domain)
	c := settings(s)
	c.Signer.Rotation.CheckEvery = 0
	k, err := dkim.NewKeeper(dkim.KeeperOptions{Config: c, Store: directory(t), Queue: &jobs{}})
	if k != nil || err != nil {
		t.Errorf("got %v, %v, want nobody who does nothing", k, err)
	}
	c.Signer.Rotation.Automatic, c.Signer.Rotation.Selector = true, "{algo}.{algo}"
	if _, err = dkim.NewKeeper(dkim.KeeperOptions{Config: c, Store: directory(t), Queue: &jobs{}}); err == nil || !strings.Contains(err.Error(), "selector template") {
		t.Errorf("got %v, want what is wrong with the template", err)
	}
}

func TestAuthorsOf(t *testing.T) {
	if got := dkim.AuthorsOf(domain, domain); !slices.Equal(got, []string{""}) {
		t.Errorf("got %q, want everybody for our own domain", got)
	}
	if got := dkim.AuthorsOf(domain, "relay.example"); !slices.Equal(got, []string{domain, "." + domain}) {
		t.Errorf("got %q", got)
	}
}
