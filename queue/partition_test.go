package queue

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// wire is the way from one server to another, which a test can cut.
type wire struct {
	l  net.Listener
	to string
	wg sync.WaitGroup

	mu       sync.Mutex
	isCut    bool
	isSilent atomic.Bool // what is sent is lost, and nobody notices
	conns    []net.Conn
}

// into is an end of a wire.
type into struct {
	net.Conn
	w *wire
}

func (i into) Write(b []byte) (int, error) {
	if i.w.isSilent.Load() {
		return len(b), nil
	}
	return i.Conn.Write(b)
}

func (w *wire) run() {
	for {
		in, err := w.l.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", w.to)
		if err != nil {
			_ = in.Close()
			continue
		}
		w.mu.Lock()
		w.conns = append(w.conns, in, out)
		isCut := w.isCut
		w.mu.Unlock()
		for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
			w.wg.Go(func() {
				_, _ = io.Copy(into{pair[0], w}, pair[1])
				_, _ = pair[0].Close(), pair[1].Close()
			})
		}
		if isCut {
			_, _ = in.Close(), out.Close()
		}
	}
}

func (w *wire) set(isCut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.isCut = isCut
	for _, c := range w.conns {
		if isCut {
			_ = c.Close()
		}
	}
}

// wiredCluster is one whose servers reach each other by wires only (what they tell each other of their addresses leads nowhere); cut cuts a server off from the others, or joins it again.
func wiredCluster(t *testing.T) (c *cluster, cut func(server int, isCut bool)) {
	t.Helper()
	c, wires := wire3(t)
	return c, func(i int, isCut bool) {
		for j := range wires {
			if i != j {
				wires[i][j].set(isCut)
				wires[j][i].set(isCut)
			}
		}
	}
}

// wire3 is wiredCluster with the wires in hand, by where they begin and end.
func wire3(t *testing.T) (c *cluster, wires [3][3]*wire) {
	t.Helper()
	c = &cluster{}
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	var ports [3]int
	for i := range ports {
		l := listen()
		ports[i] = l.Addr().(*net.TCPAddr).Port
		defer func() { _ = l.Close() }()
	}
	for i := range c.servers {
		var routes []*url.URL
		for j := range c.servers {
			if i != j {
				w := &wire{l: listen(), to: fmt.Sprintf("127.0.0.1:%d", ports[j])}
				w.wg.Go(w.run)
				wires[i][j] = w
				routes = append(routes, &url.URL{Scheme: "nats", Host: w.l.Addr().String()})
				t.Cleanup(func() { _ = w.l.Close(); w.set(true); w.wg.Wait() })
			}
		}
		c.options[i] = &server.Options{
			ServerName: fmt.Sprintf("n%d", i), Host: "127.0.0.1", Port: -1, NoSigs: true, NoLog: true,
			JetStream: true, StoreDir: t.TempDir(), JetStreamMaxStore: 100 << 30, SyncAlways: true,
			Cluster: server.ClusterOpts{Name: "test", Host: "127.0.0.1", Port: ports[i], NoAdvertise: true, PoolSize: -1,
				Advertise: "127.0.0.1:1"}, Routes: routes,
		}
	}
	return c, wires
}

// paced is what several processes do with the slots and turns of one key.
type paced struct {
	limit      int
	rate       Rate
	used, most atomic.Int64
	had        [3]atomic.Int64 // how often each has had slots
	mu         sync.Mutex
	turns      []time.Time
	reserved   [3]atomic.Int64 // how many turns each has got
}

// use uses slots as a delivery process does: it looks whether it still has them right before each use.
func (p *paced) use(ctx context.Context, i int, m *Member) {
	for n := 1; ctx.Err() == nil; n++ {
		life := m.Life()
		got, err := m.Claim(ctx, life, "site", Claim{Want: 1 + n%3, Limit: p.limit, Look: true})
		if err != nil || got.Have == 0 {
			_ = sleep(ctx, 20*time.Millisecond)
			continue
		}
		p.had[i].Add(1)
		for range 20 {
			if m.Life() != life {
				break
			}
			now := p.used.Add(int64(got.Have))
			for most := p.most.Load(); now > most && !p.most.CompareAndSwap(most, now); most = p.most.Load() {
			}
			time.Sleep(5 * time.Millisecond)
			p.used.Add(-int64(got.Have))
		}
	}
}

func (p *paced) reserve(ctx context.Context, i int, q *Queue) {
	for n := 1; ctx.Err() == nil; n++ {
		t, err := q.Reserve(ctx, "site", 1+n%3, p.rate, 2*time.Second)
		if err != nil || t.Count == 0 {
			_ = sleep(ctx, 20*time.Millisecond)
			continue
		}
		p.reserved[i].Add(int64(t.Count))
		p.mu.Lock()
		for k := range t.Count {
			p.turns = append(p.turns, t.First.Add(time.Duration(k)*t.Every))
		}
		p.mu.Unlock()
	}
}

// goesOn waits until each process has had slots and turns after this.
func (p *paced) goesOn(t *testing.T, after string, who ...int) {
	t.Helper()
	for _, i := range who {
		had, reserved := p.had[i].Load(), p.reserved[i].Load()
		for end := time.Now().Add(time.Minute); p.had[i].Load() == had || p.reserved[i].Load() == reserved; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: process %d got no slot, or no turn, in a minute: %d and %d more", after, i, p.had[i].Load()-had, p.reserved[i].Load()-reserved)
			}
		}
	}
}

// TestLimitsWithoutTheirLeader: the leader of a bucket is killed, or cut off together with a process that goes on to talk to it, for longer than a
// sign of life lasts. Neither slots nor turns are exceeded, and afterwards everybody gets both.
func TestLimitsWithoutTheirLeader(t *testing.T) {
	c, cut := wiredCluster(t)
	for i := range c.servers {
		c.start(t, i)
	}
	t.Cleanup(func() {
		for _, s := range c.servers {
			s.Shutdown()
			s.WaitForShutdown()
		}
	})
	p := &paced{limit: 5, rate: Rate{Count: 50, Window: time.Second}}
	ctx, cancel := context.WithCancel(t.Context())
	var users sync.WaitGroup
	var queues []*Queue
	for i := range c.servers { // each at a server of its own, as long as that answers
		var urls []string
		for k := range c.servers {
			urls = append(urls, fmt.Sprintf("nats://127.0.0.1:%d", c.options[(i+k)%3].Port))
		}
		q, err := Open(t.Context(), Options{Node: fmt.Sprintf("p%d", i), Replicas: 3, MaxBytes: 1 << 30, Logger: slog.New(slog.DiscardHandler),
			Connect: func(extra ...nats.Option) (*nats.Conn, error) {
				return nats.Connect(strings.Join(urls, ","), append(extra, nats.DontRandomize())...)
			}})
		if err != nil {
			t.Fatal(err)
		}
		defer closeQueue(t, q)
		m := join(t, q, func(string) {})
		defer m.Leave(context.Background())
		queues = append(queues, q)
		users.Go(func() { p.use(ctx, i, m) })
		users.Go(func() { p.reserve(ctx, i, q) })
	}
	defer users.Wait()
	defer cancel()
	leader := func(bucket string) int {
		t.Helper()
		var err error
		for _, q := range queues {
			var info *streamInfo
			if info, err = q.streamInfo(t.Context(), "KV_"+bucket, "", 0); err == nil {
				return int(info.Cluster.Leader[1] - '0')
			}
		}
		t.Fatal(err)
		return 0
	}
	p.goesOn(t, "at first", 0, 1, 2)
	for _, bucket := range []string{slotBucket, limitBucket} {
		dead := leader(bucket)
		c.servers[dead].Shutdown()
		c.servers[dead].WaitForShutdown()
		p.goesOn(t, "without the leader of "+bucket, (dead+1)%3, (dead+2)%3)
		c.start(t, dead)
		p.goesOn(t, "with its old leader of "+bucket, 0, 1, 2)

		lost := leader(bucket)
		cut(lost, true)
		time.Sleep(memberTTL + memberMargin)
		others := func() (who []int) {
			for i, q := range queues {
				if name := q.nc.ConnectedServerName(); name != "" && name != c.servers[lost].Name() {
					who = append(who, i)
				}
			}
			return who
		}
		// Who talks to the other side; who does not finds it by and by.
		eventually(t, "everybody still talks to the server that was cut off", func() bool { return len(others()) > 0 })
		t.Logf("cut off: n%d; on the other side: %v", lost, others())
		p.goesOn(t, "on the other side of "+bucket, others()...)
		cut(lost, false)
		p.goesOn(t, "after a partition of "+bucket, 0, 1, 2)
	}
	cancel()
	users.Wait()
	if most := p.most.Load(); most > int64(p.limit) {
		t.Errorf("%d slots were used at a time, want no more than %d", most, p.limit)
	}
	slices.SortFunc(p.turns, time.Time.Compare)
	worst, from := 0, 0
	for i := range p.turns {
		for p.turns[i].Sub(p.turns[from]) >= p.rate.Window {
			from++
		}
		worst = max(worst, i-from+1)
	}
	if worst > p.rate.Count+p.rate.Block() {
		t.Errorf("%d turns in a second, want no more than %d and a block of %d", worst, p.rate.Count, p.rate.Block())
	}
	t.Logf("%d slots at most, %d turns, %d in a second at most", p.most.Load(), len(p.turns), worst)
}

// eventually waits a minute for something.
func eventually(t *testing.T, otherwise string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(otherwise)
		}
	}
}

// TestEachConnectionLeavesAnIsolatedServer: a process has several connections. One that an isolated server keeps is made anew, however well the
// others do.
func TestEachConnectionLeavesAnIsolatedServer(t *testing.T) {
	c, cut := wiredCluster(t)
	for i := range c.servers {
		c.start(t, i)
	}
	t.Cleanup(func() {
		for _, s := range c.servers {
			s.Shutdown()
			s.WaitForShutdown()
		}
	})
	q := c.openSpread(t)
	defer closeQueue(t, q)

	cut(1, true)
	if on := q.calls.ConnectedServerName(); on != "n1" {
		t.Fatalf("calls are made to %s, want n1", on)
	}
	marked := 0
	eventually(t, "calls are still made to the isolated server", func() bool {
		if _, err := q.mark(streamMail); err == nil {
			marked++
		}
		return q.calls.ConnectedServerName() != "n1"
	})
	if marked == 0 {
		t.Error("no marker was published beside the calls")
	}
	eventually(t, "calls are not answered by the other side", func() bool {
		_, err := q.streamInfo(t.Context(), streamMail, "", 0)
		return err == nil
	})
}

// openSpread opens a queue whose connections go to the three servers: nc to n0, calls to n1, lists to n2.
func (c *cluster) openSpread(t *testing.T) *Queue {
	t.Helper()
	dials := 0
	q, err := Open(t.Context(), Options{Node: "p", Replicas: 3, MaxBytes: 1 << 30, Logger: slog.New(slog.DiscardHandler),
		Connect: func(extra ...nats.Option) (*nats.Conn, error) {
			var urls []string
			for k := range c.servers {
				urls = append(urls, fmt.Sprintf("nats://127.0.0.1:%d", c.options[(dials+k)%3].Port))
			}
			dials++
			return nats.Connect(strings.Join(urls, ","), append(extra, nats.DontRandomize())...)
		}})
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// TestIdleConnectionsLeaveAnIsolatedServer: one on which nothing is asked that only a leader answers leaves it too. Until then its server tells of
// the board as it was when it was cut off.
func TestIdleConnectionsLeaveAnIsolatedServer(t *testing.T) {
	c, cut := wiredCluster(t)
	for i := range c.servers {
		c.start(t, i)
	}
	t.Cleanup(func() {
		for _, s := range c.servers {
			s.Shutdown()
			s.WaitForShutdown()
		}
	})
	q := c.openSpread(t)
	defer closeQueue(t, q)
	known := make(chan string, 16)
	ctx, cancel := context.WithCancel(t.Context())
	var follower sync.WaitGroup
	defer follower.Wait()
	defer cancel()
	follower.Go(func() {
		if err := q.FollowPostings(ctx, func(p Posting, _ bool) { known <- p.Name }, func(error) {}); err != nil {
			t.Error(err)
		}
	})
	hears := func(name string) {
		t.Helper()
		eventually(t, "nobody hears of "+name, func() bool {
			return q.Post(t.Context(), Posting{Kind: "test", Name: name, Data: []byte("{}")}) == nil
		})
		select {
		case got := <-known:
			if got != name {
				t.Errorf("heard of %s, want %s", got, name)
			}
		case <-time.After(time.Minute):
			t.Errorf("%s is not known, lists are made by %s", name, q.lists.ConnectedServerName())
		}
	}
	hears("before")
	if on := q.lists.ConnectedServerName(); on != "n2" {
		t.Fatalf("lists are made by %s, want n2", on)
	}
	cut(2, true)
	hears("after")
}

// TestWorkerLeavesASilentServer: a worker waits for jobs at a server that hears nothing of the others, without any connection being closed: nobody
// answers its pulls, which is as if there were none. It finds a server that has some.
func TestWorkerLeavesASilentServer(t *testing.T) {
	c, wires := wire3(t)
	for i := range c.servers {
		c.start(t, i)
	}
	t.Cleanup(func() {
		for _, s := range c.servers {
			s.Shutdown()
			s.WaitForShutdown()
		}
	})
	worker := c.openSpread(t)
	defer closeQueue(t, worker)
	other, err := Open(t.Context(), Options{Node: "other", Replicas: 3, MaxBytes: 1 << 30, Logger: slog.New(slog.DiscardHandler),
		Connect: func(extra ...nats.Option) (*nats.Conn, error) {
			return nats.Connect(fmt.Sprintf("nats://127.0.0.1:%d,nats://127.0.0.1:%d", c.options[1].Port, c.options[2].Port), extra...)
		}})
	if err != nil {
		t.Fatal(err)
	}
	defer closeQueue(t, other)
	ctx, cancel := context.WithCancel(t.Context())
	var delivery sync.WaitGroup
	defer delivery.Wait()
	defer cancel()
	taken := make(chan MessageID, 16)
	delivery.Go(func() {
		if err := worker.Deliver(ctx, 64, func(ctx context.Context, d *Delivery) {
			if d.Settle(ctx, Settlement{}) == nil {
				taken <- d.Job.ID
			}
		}); err != nil {
			t.Error(err)
		}
	})
	takes := func(when string) {
		t.Helper()
		id := NewID()
		j := other.storeMail(t, id, "example.com")[0]
		other.storeJob(t, other.readySpot("example.com"), j, 1)
		select {
		case got := <-taken:
			if got != id {
				t.Errorf("%s: took %s, want %s", when, got, id)
			}
		case <-time.After(time.Minute):
			t.Errorf("%s: a job was not taken in a minute, pulls go to %s", when, worker.nc.ConnectedServerName())
		}
	}
	takes("before")
	if on := worker.nc.ConnectedServerName(); on != "n0" {
		t.Fatalf("pulls go to %s, want n0", on)
	}
	for j := 1; j < 3; j++ {
		wires[0][j].isSilent.Store(true)
		wires[j][0].isSilent.Store(true)
	}
	eventually(t, "the other servers elect no leader", func() bool { _, err := other.mark(streamMail); return err == nil })
	eventually(t, "the other servers elect no leader", func() bool { _, err := other.mark(streamJobs); return err == nil })
	began := time.Now()
	takes("after")
	t.Logf("taken after %s", time.Since(began).Round(time.Second))
}
