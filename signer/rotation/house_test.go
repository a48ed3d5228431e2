package rotation

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"postroad/signer/keyring"
)

// moody is a store that is slow, that counts what it is asked, and fails when it is told to.
type moody struct {
	*memory
	mu    sync.Mutex
	slow  bool
	fail  func(call, domain string) error // nil: never
	calls map[string]int
}

func newMoody(m *memory) *moody { return &moody{memory: m, calls: make(map[string]int)} }

func (m *moody) call(ctx context.Context, name, domain string) error {
	m.mu.Lock()
	m.calls[name]++
	fail, slow := m.fail, m.slow
	m.mu.Unlock()
	if slow {
		select {
		case <-time.After(rand.N(2 * time.Second)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if fail != nil {
		return fail(name, domain)
	}
	return nil
}

func (m *moody) mood(fail func(call, domain string) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = fail
}

// count is how often something was asked since the last count.
func (m *moody) count(name string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.calls[name]
	m.calls[name] = 0
	return n
}

func (m *moody) Entries(ctx context.Context, domain string) ([]keyring.Entry, error) {
	if domain == "" {
		return m.list(ctx)
	}
	if err := m.call(ctx, "entries", domain); err != nil {
		return nil, err
	}
	return m.memory.Entries(ctx, domain)
}

// list leaves out the domains that fail.
func (m *moody) list(ctx context.Context) ([]keyring.Entry, error) {
	if err := m.call(ctx, "list", ""); err != nil {
		return nil, err
	}
	m.mu.Lock()
	fail := m.fail
	m.mu.Unlock()
	entries, err := m.memory.Entries(ctx, "")
	var errs []error
	entries = slices.DeleteFunc(entries, func(e keyring.Entry) bool {
		if fail == nil {
			return false
		}
		err := fail("entries", e.Domain)
		errs = append(errs, err)
		return err != nil
	})
	return entries, errors.Join(append(errs, err)...)
}

func (m *moody) Create(ctx context.Context, k keyring.Key, by string) (keyring.Entry, error) {
	if err := m.call(ctx, "create", k.Domain); err != nil {
		return keyring.Entry{}, err
	}
	return m.memory.Create(ctx, k, by)
}

func (m *moody) Change(ctx context.Context, e keyring.Entry, to keyring.State, why string) (keyring.Entry, error) {
	if err := m.call(ctx, "change", e.Domain); err != nil {
		return keyring.Entry{}, err
	}
	return m.memory.Change(ctx, e, to, why)
}

// logbook is a log that tests read.
type logbook struct {
	mu    sync.Mutex
	lines []string
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, string(p))
	return len(p), nil
}

// has counts the lines with a text in it.
func (l *logbook) has(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, line := range l.lines {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// house is a bench with a Keeper.
type house struct {
	*bench
	store   *moody
	k       *Keeper
	log     *logbook
	reg     *prometheus.Registry
	inForce []string // guarded by log.mu

	cancel context.CancelFunc
	ended  sync.WaitGroup
}

func newHouse(t *testing.T, policy Policy, change func(*KeeperOptions, *Options)) *house {
	t.Helper()
	h := &house{log: &logbook{}, reg: prometheus.NewRegistry()}
	h.bench = &bench{T: t, world: newWorld(keyPool(t)), store: newMemory()}
	h.store = newMoody(h.bench.store)
	log := slog.New(slog.NewTextHandler(h.log, nil))
	ro := Options{Store: h.store, Publication: h.world, Sent: h.world, Publisher: h.world, Policy: policy, By: "test", Make: h.makeKey, Logger: log}
	ko := KeeperOptions{Store: h.store, Publication: h.world, Policy: policy, Logger: log, Registerer: h.reg,
		InForce: h.begins}
	if change != nil {
		change(&ko, &ro)
	}
	var err error
	if h.r, err = New(ro); err != nil {
		t.Fatal(err)
	}
	ko.Rotator = h.r
	if h.k, err = NewKeeper(ko); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.stop)
	return h
}

// begins notes that a domain came into force.
func (h *house) begins(_ context.Context, domain string) {
	h.log.mu.Lock()
	defer h.log.mu.Unlock()
	h.inForce = append(h.inForce, domain)
}

// begun are the domains that came into force.
func (h *house) begun() []string {
	h.log.mu.Lock()
	defer h.log.mu.Unlock()
	return slices.Clone(h.inForce)
}

// silent makes servers silent, and all others answer.
func (h *house) silent(servers ...string) {
	h.world.mu.Lock()
	defer h.world.mu.Unlock()
	clear(h.dead)
	for _, s := range servers {
		h.dead[s] = errors.New("timeout")
	}
}

func (h *house) start() {
	ctx, cancel := context.WithCancel(h.Context())
	h.cancel = cancel
	h.ended.Go(func() { h.k.Run(ctx) })
}

func (h *house) stop() {
	if h.cancel != nil {
		h.cancel()
	}
	h.ended.Wait()
}

// wants holds the conditions against texts, one in each.
func (h *house) wants(texts ...string) {
	h.Helper()
	got := h.k.Conditions()
	ok := len(got) == len(texts)
	for i := range min(len(got), len(texts)) {
		ok = ok && strings.Contains(got[i].Text, texts[i])
	}
	if !ok {
		h.Errorf("at %v: got conditions %v, want %q", time.Now(), got, texts)
	}
}

// gauges are the metrics by name and labels.
func (h *house) gauges() map[string]float64 {
	h.Helper()
	families, err := h.reg.Gather()
	if err != nil {
		h.Fatal(err)
	}
	out := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			out[f.GetName()+labels(m)] = m.GetGauge().GetValue()
		}
	}
	return out
}

func labels(m *dto.Metric) string {
	var parts []string
	for _, l := range m.GetLabel() {
		parts = append(parts, l.GetValue())
	}
	return "{" + strings.Join(parts, " ") + "}"
}

// signsAlways reports when some domain has no RSA key in force, or one that cannot be verified.
func (h *house) signsAlways(domains ...string) {
	h.Helper()
	entries, err := h.bench.store.Entries(h.Context(), "")
	if err != nil {
		h.Fatal(err)
	}
	for _, domain := range domains {
		has := false
		for _, e := range entries {
			if e.Domain != domain || e.State != keyring.Active {
				continue
			}
			has = has || e.Algorithm == keyring.RSA
			if err := h.verifiable(&e); err != nil {
				h.Fatalf("at %v %s of %s signs: %v", time.Now(), e.Selector, domain, err)
			}
		}
		if !has {
			h.Fatalf("at %v %s has no RSA key that signs", time.Now(), domain)
		}
	}
}

// bring brings domains into force before the test begins.
func (h *house) bring(domains ...string) {
	h.Helper()
	for _, name := range domains {
		k, err := h.makeKey(name, "hand", keyring.RSA)
		if err != nil {
			h.Fatal(err)
		}
		h.bench.store.put(k)
		h.set(Name(name, "hand"), keyring.Record(k))
	}
	time.Sleep(day)
}

// hooked finds what was asked of the hook for a name.
func (w *world) hooked(name string) (Record, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.hooks {
		if r.Name == name {
			return r, true
		}
	}
	return Record{}, false
}
