package queue

import (
	"cmp"
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
	host := ownHost()
	ports := freePorts(t, host)
	for i := range c.servers {
		var routes []*url.URL
		for j := range c.servers {
			if i != j {
				w := &wire{l: listen(), to: fmt.Sprintf("%s:%d", host, ports[j])}
				w.wg.Go(w.run)
				wires[i][j] = w
				routes = append(routes, &url.URL{Scheme: "nats", Host: w.l.Addr().String()})
				t.Cleanup(func() { _ = w.l.Close(); w.set(true); w.wg.Wait() })
			}
		}
		c.options[i] = &server.Options{
			ServerName: fmt.Sprintf("n%d", i), Host: ownHost(), Port: -1, NoSigs: true, NoLog: true,
			JetStream: true, StoreDir: t.TempDir(), JetStreamMaxStore: 100 << 30, SyncAlways: true,
			Cluster: server.ClusterOpts{Name: "test", Host: host, Port: ports[i], NoAdvertise: true, PoolSize: -1,
				Advertise: "127.0.0.1:1"}, Routes: routes,
		}
	}
	for i := range c.servers {
		c.start(t, i)
	}
	t.Cleanup(func() {
		for _, s := range c.servers {
			s.Shutdown()
			s.WaitForShutdown()
		}
	})
	return c, wires
}

// url is where clients reach a server.
func (c *cluster) url(i int) string {
	return fmt.Sprintf("nats://%s:%d", c.options[i].Host, c.options[i].Port)
}

// paced is what several processes do with the slots and turns of one key.
type paced struct {
	limit    int
	rate     Rate
	had      [3]atomic.Int64 // how often each has had slots
	mu       sync.Mutex
	uses     []use
	turns    []time.Time
	reserved [3]atomic.Int64 // how many turns each has got
}

// use is a time during which a process certainly had slots: it has looked before and afterwards.
type use struct {
	from, to time.Time
	n        int
}

// mostUsed is how many slots were had at a time.
func (p *paced) mostUsed() (most int) {
	type step struct {
		at time.Time
		n  int
	}
	var steps []step
	for _, u := range p.uses {
		steps = append(steps, step{u.from, u.n}, step{u.to, -u.n})
	}
	slices.SortFunc(steps, func(a, b step) int { return cmp.Or(a.at.Compare(b.at), a.n-b.n) })
	now := 0
	for _, s := range steps {
		now += s.n
		most = max(most, now)
	}
	return most
}

// use uses slots as a delivery process does.
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
			from := time.Now()
			time.Sleep(5 * time.Millisecond)
			to := time.Now()
			if m.Life() != life {
				break
			}
			p.mu.Lock()
			p.uses = append(p.uses, use{from, to, got.Have})
			p.mu.Unlock()
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
		for end := time.Now().Add(3 * time.Minute); p.had[i].Load() == had || p.reserved[i].Load() == reserved; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: process %d got no slot, or no turn, in three minutes: %d and %d more", after, i, p.had[i].Load()-had, p.reserved[i].Load()-reserved)
			}
		}
	}
}

// TestLimitsWithoutTheirLeader: the leader of a bucket is killed, or cut off together with a process that goes on to talk to it, for longer than a
// sign of life lasts. Neither slots nor turns are exceeded, and afterwards everybody gets both.
func TestLimitsWithoutTheirLeader(t *testing.T) {
	c, cut := wiredCluster(t)
	p := &paced{limit: 5, rate: Rate{Count: 50, Window: time.Second}}
	ctx, cancel := context.WithCancel(t.Context())
	var users sync.WaitGroup
	var queues []*Queue
	for i := range c.servers { // each at a server of its own, as long as that answers
		var urls []string
		for k := range c.servers {
			urls = append(urls, c.url((i+k)%3))
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
		is := -1
		eventually(t, "nobody knows the leader of "+bucket, func() bool {
			for _, q := range queues {
				if info, err := q.streamInfo(t.Context(), "KV_"+bucket, "", 0); err == nil {
					is = int(info.Cluster.Leader[1] - '0')
					break
				}
			}
			return is >= 0
		})
		return is
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
	most := p.mostUsed()
	if most > p.limit {
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
	t.Logf("%d slots at most, %d turns, %d in a second at most", most, len(p.turns), worst)
}

// eventually waits two minutes for something.
func eventually(t *testing.T, otherwise string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(otherwise)
		}
	}
}

// TestEachConnectionLeavesAnIsolatedServer: a process has several connections. One that an isolated server keeps is made anew, however well the
// others do.
func TestEachConnectionLeavesAnIsolatedServer(t *testing.T) {
	c, cut := wiredCluster(t)
	q := c.openSpread(t)
	defer closeQueue(t, q)

	// What leads MAIL, and the connection beside the calls, are to be on the other side.
	on := ""
	eventually(t, "calls are made to a server that all depends on", func() bool {
		info, err := q.streamInfo(t.Context(), streamMail, "", 0)
		on = q.calls.ConnectedServerName()
		switch {
		case err != nil || on == "" || !q.nc.IsConnected():
			return false
		case info.Cluster.Leader == on:
			_, _ = q.nc.Request("$JS.API.STREAM.LEADER.STEPDOWN."+streamMail, nil, time.Second)
			return false
		case q.nc.ConnectedServerName() == on:
			_ = q.nc.ForceReconnect()
			return false
		}
		return true
	})
	cut(int(on[1]-'0'), true)
	marked := 0
	eventually(t, "calls are still made to the isolated server", func() bool {
		if _, err := q.mark(streamMail); err == nil {
			marked++
		}
		now := q.calls.ConnectedServerName()
		return now != "" && now != on
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
				urls = append(urls, c.url((dials+k)%3))
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
		for end := time.After(3 * time.Minute); ; {
			select {
			case got := <-known: // one that was posted again, because no answer came, is heard of again
				if got == name {
					return
				}
				if got != "before" {
					t.Errorf("heard of %s, want %s", got, name)
				}
			case <-end:
				t.Fatalf("%s is not known, lists are made by %s", name, q.lists.ConnectedServerName())
			}
		}
	}
	hears("before")
	var on string
	eventually(t, "lists are made by nobody", func() bool { on = q.lists.ConnectedServerName(); return on != "" })
	cut(int(on[1]-'0'), true)
	hears("after")
}

// TestWorkerLeavesASilentServer: a worker waits for jobs at a server that hears nothing of the others, without any connection being closed: nobody
// answers its pulls, which is as if there were none. It finds a server that has some.
func TestWorkerLeavesASilentServer(t *testing.T) {
	c, wires := wire3(t)
	worker := c.openSpread(t)
	defer closeQueue(t, worker)
	on := int(worker.nc.ConnectedServerName()[1] - '0') // a dial that took too long has gone elsewhere
	others := []int{(on + 1) % 3, (on + 2) % 3}
	other, err := Open(t.Context(), Options{Node: "other", Replicas: 3, MaxBytes: 1 << 30, Logger: slog.New(slog.DiscardHandler),
		Connect: func(extra ...nats.Option) (*nats.Conn, error) {
			return nats.Connect(c.url(others[0])+","+c.url(others[1]), extra...)
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
		case <-time.After(3 * time.Minute):
			t.Errorf("%s: a job was not taken in three minutes, pulls go to %s", when, worker.nc.ConnectedServerName())
		}
	}
	takes("before")
	if now := worker.nc.ConnectedServerName(); now != c.servers[on].Name() {
		t.Fatalf("pulls go to %s, want n%d", now, on)
	}
	for _, j := range others {
		wires[on][j].isSilent.Store(true)
		wires[j][on].isSilent.Store(true)
	}
	eventually(t, "the other servers elect no leader", func() bool { _, err := other.mark(streamMail); return err == nil })
	eventually(t, "the other servers elect no leader", func() bool { _, err := other.mark(streamJobs); return err == nil })
	began := time.Now()
	takes("after")
	t.Logf("taken after %s", time.Since(began).Round(time.Second))
}
