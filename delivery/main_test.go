package delivery

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/goleak"

	"postroad/delivery/mx"
	"postroad/delivery/mx/mxtest"
	"postroad/delivery/smtpc"
	"postroad/queue"
	"postroad/queue/address"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func path(s string) address.Path {
	local, domain, _ := strings.Cut(s, "@")
	return address.Path{Local: local, Domain: domain}
}

// testJob is a job that was accepted a moment ago.
func testJob(rcpts ...string) queue.Job {
	j := queue.Job{ID: queue.NewID(), Kind: queue.KindMail, Parts: 1, ReversePath: path("alice@example.org"), Accepted: time.Now(), Size: int64(len(testContent))}
	for _, r := range rcpts {
		j.Recipients = append(j.Recipients, queue.Recipient{Path: path(r)})
		j.Domain = path(r).Domain
	}
	return j
}

const testContent = "From: Alice <alice@example.org>\r\nSubject: Hello\r\n\r\nGood day.\r\n"

// fakeMail is a job in hand.
type fakeMail struct {
	content   string
	openErr   error
	settleErr func(try int) error

	mu      sync.Mutex
	opens   int
	tries   int
	settled []queue.Settlement
}

func (m *fakeMail) Open(context.Context) (io.ReadCloser, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.opens++
	if m.openErr != nil {
		return nil, m.openErr
	}
	content := m.content
	if content == "" {
		content = testContent
	}
	return io.NopCloser(strings.NewReader(content)), nil
}

func (m *fakeMail) Size() int64 { return int64(len(testContent)) }

func (m *fakeMail) Settle(ctx context.Context, s queue.Settlement) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tries++
	if m.settleErr != nil {
		if err := m.settleErr(m.tries); err != nil {
			return err
		}
	}
	m.settled = append(m.settled, s)
	return ctx.Err()
}

// only is the one settlement that there must be.
func (m *fakeMail) only(t *testing.T) queue.Settlement {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.settled) != 1 {
		t.Fatalf("got %d settlements, want 1", len(m.settled))
	}
	return m.settled[0]
}

// fakeConn is a connection whose transactions are answered by a function.
type fakeConn struct {
	host   string
	addr   netip.AddrPort
	answer func(ctx context.Context, n int, m smtpc.Message) (smtpc.Result, error)
	state  *tls.ConnectionState
	limits smtpc.Limits
	onEnd  func()

	mu     sync.Mutex
	n      int
	broken bool
	closed bool
}

func (c *fakeConn) Send(ctx context.Context, m smtpc.Message) (smtpc.Result, error) {
	c.mu.Lock()
	c.n++
	n := c.n
	c.mu.Unlock()
	if _, err := io.Copy(io.Discard, m.Body); err != nil {
		return smtpc.Result{}, err
	}
	res, err := c.answer(ctx, n, m)
	if err != nil {
		c.mu.Lock()
		c.broken = true
		c.mu.Unlock()
	}
	return res, err
}

func (c *fakeConn) Reusable() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.broken && !c.closed
}

func (c *fakeConn) Transactions() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

func (c *fakeConn) Close(context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.onEnd != nil && !c.closed {
		c.onEnd()
	}
	c.closed = true
}

func (c *fakeConn) TLSState() *tls.ConnectionState { return c.state }
func (c *fakeConn) RemoteAddr() netip.AddrPort     { return c.addr }
func (c *fakeConn) Host() string                   { return c.host }
func (c *fakeConn) Limits() smtpc.Limits           { return c.limits }

// ok takes every recipient.
func ok(_ context.Context, _ int, m smtpc.Message) (smtpc.Result, error) {
	return every(m, smtpc.Reply{Code: 250, Enhanced: "2.0.0", Lines: []string{"taken"}, Phase: smtpc.PhaseDot}), nil
}

func every(m smtpc.Message, r smtpc.Reply) smtpc.Result {
	res := smtpc.Result{Recipients: make([]smtpc.Reply, len(m.Recipients))}
	for i := range res.Recipients {
		res.Recipients[i] = r
	}
	return res
}

// fakeNet is the hosts that can be dialled, by host name.
type fakeNet struct {
	mu    sync.Mutex
	hosts map[string]func(context.Context, smtpc.Options) (*fakeConn, error)
	dials map[string]int
	conns []*fakeConn
}

func newFakeNet() *fakeNet {
	return &fakeNet{hosts: make(map[string]func(context.Context, smtpc.Options) (*fakeConn, error)), dials: make(map[string]int)}
}

// serve makes a host that answers each transaction by a function.
func (n *fakeNet) serve(host string, answer func(context.Context, int, smtpc.Message) (smtpc.Result, error)) {
	n.set(host, func(context.Context, smtpc.Options) (*fakeConn, error) { return &fakeConn{answer: answer}, nil })
}

func (n *fakeNet) set(host string, dial func(context.Context, smtpc.Options) (*fakeConn, error)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hosts[host] = dial
}

// refuse makes a host that cannot be reached after d.
func (n *fakeNet) refuse(host string, d time.Duration) {
	n.set(host, func(ctx context.Context, _ smtpc.Options) (*fakeConn, error) {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(d):
			return nil, &smtpc.Error{Phase: smtpc.PhaseConnect, Err: errors.New("connection refused")}
		}
	})
}

func (n *fakeNet) dialled(host string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dials[host]
}

func (n *fakeNet) dial(ctx context.Context, host string, addr netip.AddrPort, o smtpc.Options) (conn, error) {
	n.mu.Lock()
	n.dials[host]++
	dial := n.hosts[host]
	n.mu.Unlock()
	if dial == nil {
		return nil, fmt.Errorf("no such host %s", host)
	}
	c, err := dial(ctx, o)
	if err != nil {
		return nil, err
	}
	c.host, c.addr = host, addr
	n.mu.Lock()
	n.conns = append(n.conns, c)
	n.mu.Unlock()
	return c, nil
}

// fakeQueue hands out nothing.
type fakeQueue struct{}

func (fakeQueue) Deliver(ctx context.Context, _ int, _ func(context.Context, *queue.Delivery)) error {
	<-ctx.Done()
	return nil
}

// testWorker is a worker on a network of its own; each domain in records has one MX of the name mx.<domain>.
func testWorker(t *testing.T, n *fakeNet, domains ...string) *Worker {
	t.Helper()
	records := mxtest.Records{MX: map[string][]mx.MX{}, Hosts: map[string][]string{}, Fail: map[string]error{}}
	for i, d := range domains {
		records.MX[d] = []mx.MX{{Host: "mx." + d, Preference: 10}}
		records.Hosts["mx."+d] = []string{fmt.Sprintf("198.51.100.%d", i+1)}
	}
	return workerWith(t, n, func(o *Options) { o.Resolver = records })
}

func workerWith(t *testing.T, n *fakeNet, change ...func(*Options)) *Worker {
	t.Helper()
	o := DefaultOptions()
	o.Queue, o.Hostname, o.Domain = fakeQueue{}, "relay.example.org", "example.org"
	o.Resolver = mxtest.Records{}
	o.Logger = slog.New(slog.DiscardHandler)
	for _, c := range change {
		c(&o)
	}
	w, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	if n != nil {
		w.dial = n.dial
	}
	t.Cleanup(func() {
		if err := w.Stop(context.Background()); err != nil {
			t.Error(err)
		}
		w.pool.close()
	})
	return w
}

// value reads a counter.
func value(t *testing.T, c prometheus.Counter) float64 {
	t.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}
