package queue

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// cluster is three nats-servers in this process with a store of their own each.
type cluster struct {
	servers [3]*server.Server
	options [3]*server.Options
}

// ownHost is a loopback address that nobody else uses: a port that was free once, or of a server that is away for a while, stays free.
func ownHost() string {
	return fmt.Sprintf("127.%d.%d.%d", 1+rand.N(254), rand.N(256), 1+rand.N(254))
}

// freePorts are three free ports of a host.
func freePorts(t *testing.T, host string) (ports [3]int) {
	t.Helper()
	for i := range ports {
		l, err := net.Listen("tcp", host+":0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		ports[i] = l.Addr().(*net.TCPAddr).Port
	}
	return ports
}

func startCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{}
	host := ownHost()
	ports := freePorts(t, host)
	var routes []*url.URL
	for _, port := range ports {
		routes = append(routes, &url.URL{Scheme: "nats", Host: fmt.Sprintf("%s:%d", host, port)})
	}
	for i := range c.servers {
		c.options[i] = &server.Options{
			ServerName: fmt.Sprintf("n%d", i), Host: ownHost(), Port: -1, NoSigs: true, NoLog: true,
			JetStream: true, StoreDir: t.TempDir(), JetStreamMaxStore: 100 << 30, SyncAlways: true,
			Cluster: server.ClusterOpts{Name: "test", Host: host, Port: ports[i]}, Routes: routes,
		}
		c.start(t, i)
	}
	t.Cleanup(func() {
		for _, s := range c.servers {
			s.Shutdown()
			s.WaitForShutdown()
		}
	})
	return c
}

func (c *cluster) start(t *testing.T, i int) {
	t.Helper()
	s, err := server.NewServer(c.options[i])
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(time.Minute) {
		t.Fatal("server does not start")
	}
	c.options[i].Port = s.Addr().(*net.TCPAddr).Port // the same again after a restart
	c.servers[i] = s
}

func (c *cluster) open(t *testing.T, node string) *Queue {
	t.Helper()
	var urls []string
	for _, o := range c.options {
		urls = append(urls, fmt.Sprintf("nats://%s:%d", o.Host, o.Port))
	}
	q, err := Open(t.Context(), Options{Node: node, Replicas: 3, MaxBytes: 1 << 30, Logger: slog.New(slog.DiscardHandler), AckWait: 3 * time.Second,
		Connect: func(extra ...nats.Option) (*nats.Conn, error) { return nats.Connect(strings.Join(urls, ","), extra...) }})
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func closeQueue(t *testing.T, q *Queue) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := q.Close(ctx); err != nil {
		t.Error(err)
	}
}

// TestClusterLosesALeader sends mail through three servers while the leader of MAIL goes away and comes back: everything
// that was accepted is delivered, deferrals included, and nothing is left.
func TestClusterLosesALeader(t *testing.T) {
	c := startCluster(t)
	client, worker := c.open(t, "client"), c.open(t, "worker")
	defer closeQueue(t, client)
	defer closeQueue(t, worker)
	ctx, cancel := context.WithCancel(t.Context())
	var roles sync.WaitGroup
	defer roles.Wait()
	defer cancel()
	var mu sync.Mutex
	delivered := make(map[MessageID]int)
	roles.Go(func() {
		_ = worker.Sign(ctx, 16, func(ctx context.Context, s *Signing) { _ = s.Signed(ctx, "") })
	})
	roles.Go(func() { _ = worker.RunTimers(ctx) })
	roles.Go(func() {
		_ = worker.Deliver(ctx, 64, func(ctx context.Context, d *Delivery) {
			r, err := d.Open(ctx)
			if err != nil {
				return
			}
			_, err = io.Copy(io.Discard, r)
			_ = r.Close()
			if err != nil {
				return
			}
			s := Settlement{Tried: true}
			if d.Job.Tries == 0 && d.Job.Recipients[0].Path.Domain == "later.example" {
				s.Remaining = d.Job.Recipients
			}
			if d.Settle(ctx, s) == nil && len(s.Remaining) == 0 {
				mu.Lock()
				delivered[d.Job.ID]++
				mu.Unlock()
			}
		})
	})
	accepted := make(map[MessageID]bool)
	send := func(n int) {
		for i := range n {
			id := client.NewID()
			e := sampleEnvelopeTo([]string{"now.example", "later.example"}[i%2])
			if err := client.Accept(ctx, id, e, strings.NewReader("content")); err == nil {
				accepted[id] = true
			}
		}
	}
	send(60)
	var info *streamInfo
	patiently(t, "find the leader", func(ctx context.Context) (err error) {
		info, err = client.streamInfo(ctx, streamMail, "", 0)
		return err
	})
	for i, s := range c.servers {
		if s.Name() != info.Cluster.Leader {
			continue
		}
		s.Shutdown()
		s.WaitForShutdown()
		send(60)
		c.start(t, i)
	}
	send(60)
	for end := time.Now().Add(3 * time.Minute); time.Now().Before(end); time.Sleep(150 * time.Millisecond) {
		counts, err := client.Counts(ctx)
		if err == nil && counts.Incoming+counts.Ready+counts.Later["10s"] == 0 && counts.Sign == 0 {
			mu.Lock()
			n := len(delivered)
			mu.Unlock()
			if n >= len(accepted) {
				break
			}
		}
	}
	mu.Lock()
	defer mu.Unlock()
	for id := range accepted {
		if delivered[id] == 0 {
			t.Errorf("%s was accepted and not delivered", id)
		}
	}
	if len(accepted) < 120 {
		t.Errorf("only %d of 180 messages were accepted", len(accepted))
	}
}
