package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"postroad/cmd/internal/cluster/process"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// startServers runs three servers from deploy/nats.
func startServers(t *testing.T) *Servers {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	dir := t.TempDir()
	programs, err := Build(ctx, dir, false, true)
	if err != nil {
		t.Fatal(err)
	}
	launcher := process.NewLauncher()
	t.Cleanup(launcher.Close)
	s, err := NewServers(ServersOptions{Programs: programs, Launcher: launcher, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if err := s.Stop(ctx); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			for _, sv := range s.All() {
				text, _ := os.ReadFile(filepath.Join(dir, sv.Name+".log"))
				t.Logf("%s:\n%s", sv.Name, tail(string(text), 30))
			}
		}
	})
	if err := s.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return s
}

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

func connect(t *testing.T, s *Servers, u User) *nats.Conn {
	t.Helper()
	nc, err := s.Connect(u, nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		t.Fatalf("connect as %s: %v", u, err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// refused reports whether the server said no to what was sent last about subject.
func refused(t *testing.T, nc *nats.Conn, kind, subject string) bool {
	t.Helper()
	if err := nc.FlushTimeout(time.Minute); err != nil {
		t.Fatal(err)
	}
	err := nc.LastError()
	return err != nil && strings.Contains(strings.ToLower(err.Error()), strings.ToLower(fmt.Sprintf("%s to %q", kind, subject)))
}

func mayPublish(t *testing.T, nc *nats.Conn, subject string) bool {
	t.Helper()
	if err := nc.Publish(subject, nil); err != nil {
		t.Fatal(err)
	}
	return !refused(t, nc, "Publish", subject)
}

func maySubscribe(t *testing.T, nc *nats.Conn, subject string) bool {
	t.Helper()
	sub, err := nc.SubscribeSync(subject)
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Unsubscribe()
	return !refused(t, nc, "Subscription", subject)
}

// TestPermissions is the last line of design §4 as far as the queue goes. No
// stream is there, so that publishing does nothing but show the permission.
func TestPermissions(t *testing.T) {
	s := startServers(t)
	const id = "01hzzzzzzzzzzzzzzzzzzzzzzz0"
	may := map[User][]string{
		UserIngress: {"mail." + id + ".m", "mail." + id + ".c.0", "events.n1", "$JS.API.STREAM.INFO.MAIL", "$JS.API.STREAM.INFO.JOBS", "$JS.API.STREAM.INFO.LATER",
			"$KV.limits.a", "$JS.API.DIRECT.GET.KV_limits.$KV.limits.a", "seen.a", "$JS.API.DIRECT.GET.SEEN.seen.a", "$JS.API.STREAM.INFO.SEEN",
			"$KV.nodes.n1", "$KV.uses.web.p1", "$JS.API.STREAM.INFO.KV_nodes", "$JS.API.STREAM.INFO.KV_uses", "$JS.API.DIRECT.GET.KV_keys.$KV.keys.verp"},
		UserSigner: {"ready.1.a_test." + id + ".0.1", "later.1m.a_test." + id + ".0.1", "bar.mail.n1", "events.n1", "$JS.API.CONSUMER.MSG.NEXT.MAIL.signer", "$JS.API.CONSUMER.MSG.NEXT.JOBS.sign", "$JS.API.DIRECT.GET.MAIL.mail." + id + ".c.0", "$JS.ACK.MAIL.signer.1.2.3.4.5",
			"$KV.nodes.n1", "$KV.leases.lead.rotation", "$JS.API.DIRECT.GET.KV_leases.$KV.leases.lead.rotation", "notice.dkim.a_test", "$JS.API.STREAM.INFO.KV_nodes", "$JS.API.STREAM.INFO.KV_uses",
			"sign.a_test." + id + ".0.2", "$JS.API.DIRECT.GET.JOBS.ready.1.a_test." + id + ".0.1", "$JS.API.DIRECT.GET.LATER.later.1m.a_test." + id + ".0.1", "$JS.API.STREAM.MSG.DELETE.LATER"},
		UserDelivery: {"$JS.API.DIRECT.GET.KV_keys.$KV.keys.verp", "ready.1.a_test." + id + ".0.2", "slow.a_test", "$JS.API.CONSUMER.MSG.NEXT.JOBS.lane-s3", "$JS.ACK.JOBS.lane-s0.1.2.3.4.5", "later.1m.a_test." + id + ".0.1", "dsn." + id + ".m", "mail." + id + ".done.0", "mail." + id + ".done.n" + id, "dsn." + id + ".done.0", "bar.later.n1", "$JS.API.CONSUMER.MSG.NEXT.JOBS.lane-7", "$JS.API.CONSUMER.MSG.NEXT.LATER.timer-10s", "$JS.API.STREAM.PURGE.MAIL", "$JS.API.DIRECT.GET.MAIL.mail." + id + ".m",
			"$KV.limits.client", "$JS.API.STREAM.MSG.GET.KV_limits", "$JS.API.DIRECT.GET.KV_limits.$KV.limits.client",
			"$KV.slots.w.x", "$KV.slots.p.site", "$JS.API.STREAM.MSG.GET.KV_slots", "$JS.API.DIRECT.GET.KV_slots.$KV.slots.p.site", "$JS.API.STREAM.INFO.KV_slots", "notice.slots.site", "tap.line.x",
			"$KV.sites.limit.a", "$JS.API.DIRECT.GET.KV_sites", "$JS.API.STREAM.INFO.KV_sites", "notice.sites.a",
			"$KV.tls.sts.example_net", "$KV.tallies.rpt.x", "$JS.API.DIRECT.GET.KV_tallies", "$JS.API.DIRECT.GET.KV_tallies.$KV.tallies.rpt.x", "$JS.API.STREAM.INFO.KV_tallies", "$JS.API.DIRECT.GET.KV_tls", "$JS.API.DIRECT.GET.KV_tls.$KV.tls.sts.example_net", "$JS.API.STREAM.INFO.KV_tls", "$KV.leases.lead.tls-reports",
			"$KV.leases.reconciler", "$JS.API.DIRECT.GET.KV_leases.$KV.leases.reconciler", "$KV.nodes.n1", "$JS.API.STREAM.INFO.KV_nodes", "$JS.API.STREAM.INFO.KV_uses"},
		UserOps: {"$KV.keys.verp", "held.x.a_test." + id + ".0.1", "sign.1.a_test." + id + ".0.1", "$KV.leases.reconcile", "$JS.API.STREAM.PURGE.LATER", "$JS.API.DIRECT.GET.EVENTS", "$JS.API.DIRECT.GET.MAIL.mail." + id + ".m",
			"$KV.nodes.n1", "$KV.sites.suspension.a", "$JS.API.DIRECT.GET.KV_sites", "$JS.API.DIRECT.GET.KV_slots", "$JS.API.DIRECT.GET.KV_nodes", "$JS.API.DIRECT.GET.KV_uses", "$JS.API.DIRECT.GET.KV_leases", "notice.dkim.a_test", "notice.clients.web", "notice.tls.mx", "tap.want"},
		UserAdmin: {"$JS.API.STREAM.CREATE.MAIL", "$JS.API.CONSUMER.CREATE.MAIL.signer"},
	}
	// Nobody but the admin makes or changes streams, and consumers that could
	// send mail elsewhere.
	// A consumer may deliver to any subject, mail.*.m too, whatever was put into its stream.
	nobody := []string{"$JS.API.CONSUMER.CREATE.EVENTS.x", "$JS.API.STREAM.CREATE.X", "$JS.API.STREAM.UPDATE.MAIL", "$JS.API.STREAM.DELETE.MAIL", "$JS.API.CONSUMER.CREATE.MAIL.x", "$JS.API.CONSUMER.DURABLE.CREATE.MAIL.x",
		"$JS.API.CONSUMER.DELETE.MAIL.signer", "$JS.API.STREAM.SNAPSHOT.MAIL", "$JS.API.STREAM.RESTORE.MAIL", "$JS.API.STREAM.MSG.DELETE.EVENTS", "$JS.API.STREAM.PURGE.EVENTS", "$JS.API.CONSUMER.LEADER.STEPDOWN.MAIL.signer", "$SYS.REQ.SERVER.PING",
		"$JS.API.STREAM.PURGE.KV_nodes", "$JS.API.STREAM.MSG.DELETE.KV_nodes", "$JS.API.STREAM.PURGE.KV_uses", "$JS.API.STREAM.MSG.DELETE.KV_uses"}
	// What others say of themselves is for operators.
	notOperators := []string{"tap.want", "$JS.API.DIRECT.GET.KV_nodes", "$JS.API.DIRECT.GET.KV_nodes.$KV.nodes.n1", "$JS.API.STREAM.MSG.GET.KV_nodes"}
	hears := map[User][]string{
		UserIngress: {"clients", "tls"}, UserSigner: {"dkim"}, UserDelivery: {"tls", "slots", "sites"},
	}
	mayNot := map[User][]string{
		// Not one octet of mail, no job, no trace of mail removed.
		UserIngress: {"$KV.keys.verp", "ready.1.a_test." + id + ".0.1", "sign.1.a_test." + id + ".0.1", "later.1m.a_test." + id + ".0.1", "held.x.a_test." + id + ".0.1", "dsn." + id + ".m", "mail." + id + ".done.0", "bar.mail.n1",
			"$JS.API.CONSUMER.MSG.NEXT.MAIL.signer", "$JS.API.CONSUMER.MSG.NEXT.JOBS.lane-0", "$JS.API.STREAM.MSG.GET.MAIL", "$JS.API.DIRECT.GET.MAIL", "$JS.API.DIRECT.GET.MAIL.mail." + id + ".m", "$JS.API.DIRECT.GET.MAIL.mail." + id + ".c.0",
			"$JS.API.STREAM.PURGE.MAIL", "$JS.API.STREAM.MSG.DELETE.MAIL", "$JS.ACK.MAIL.signer.1.2.3.4.5", "$JS.ACK.JOBS.lane-0.1.2.3.4.5", "$KV.leases.x", "$KV.control.x",
			"$JS.API.STREAM.MSG.GET.SEEN", "$JS.API.STREAM.PURGE.SEEN", "$JS.API.STREAM.MSG.DELETE.KV_limits",
			"$JS.API.DIRECT.GET.KV_uses", "$JS.API.DIRECT.GET.KV_uses.$KV.uses.web.p1", "$JS.API.STREAM.MSG.GET.KV_uses", "$KV.leases.lead.x", "notice.clients.web", "$KV.tls.sts.x", "$JS.API.DIRECT.GET.KV_tls"},
		// Mail comes from clients and notifications from delivery only.
		UserSigner: {"$KV.keys.verp", "$JS.API.DIRECT.GET.KV_keys.$KV.keys.verp", "mail." + id + ".m", "mail." + id + ".c.0", "mail." + id + ".done.0", "dsn." + id + ".m", "$JS.API.STREAM.MSG.DELETE.JOBS", "$JS.API.STREAM.PURGE.LATER", "$JS.API.CONSUMER.MSG.NEXT.JOBS.lane-0", "$JS.API.CONSUMER.MSG.NEXT.LATER.timer-1m", "$JS.ACK.JOBS.lane-0.1.2.3.4.5", "$JS.API.STREAM.PURGE.JOBS", "$KV.control.x",
			"$KV.limits.client", "$JS.API.STREAM.MSG.GET.KV_limits", "$JS.API.DIRECT.GET.KV_limits.$KV.limits.client", "seen.x", "$JS.API.DIRECT.GET.SEEN.seen.x",
			"$KV.leases.reconciler", "$JS.API.DIRECT.GET.KV_leases.$KV.leases.reconciler", "$KV.uses.web.p1", "$JS.API.DIRECT.GET.KV_uses", "notice.clients.web", "$KV.slots.w.x", "$KV.slots.p.site", "$KV.sites.limit.a", "$JS.API.DIRECT.GET.KV_sites", "$KV.tls.sts.x", "$JS.API.DIRECT.GET.KV_tls"},
		// What delivery makes is never mail of a client, so no customer's signature gets on it.
		UserDelivery: {"mail." + id + ".done.m", "dsn." + id + ".done.m", "dsn." + id + ".c.m", "mail." + id + ".m", "mail." + id + ".c.0", "$JS.API.CONSUMER.MSG.NEXT.MAIL.signer", "$JS.API.CONSUMER.MSG.NEXT.JOBS.sign", "$JS.ACK.MAIL.signer.1.2.3.4.5", "$KV.control.x",
			"$JS.API.STREAM.PURGE.EVENTS", "seen.x", "$JS.API.DIRECT.GET.SEEN.seen.x", "$KV.uses.web.p1", "$JS.API.DIRECT.GET.KV_uses", "notice.tls.mx",
			"$KV.leases.lead.rotation", "$JS.API.DIRECT.GET.KV_leases.$KV.leases.lead.rotation", "$KV.keys.verp"},
		UserOps:    {"mail." + id + ".done.m", "dsn." + id + ".done.m", "$KV.limits.client", "$KV.slots.w.x", "$KV.slots.p.site", "$KV.uses.web.p1", "seen.x", "mail." + id + ".m", "mail." + id + ".c.0", "dsn." + id + ".m", "$JS.API.CONSUMER.MSG.NEXT.MAIL.signer", "$JS.API.CONSUMER.MSG.NEXT.JOBS.lane-0", "$JS.API.CONSUMER.MSG.NEXT.LATER.timer-1m", "$JS.ACK.MAIL.signer.1.2.3.4.5"},
		UserSystem: {"mail." + id + ".m", "$JS.API.STREAM.MSG.GET.MAIL"},
	}
	for _, u := range Users() {
		t.Run(string(u), func(t *testing.T) {
			nc := connect(t, s, u)
			if u == UserSystem { // another account: what it publishes reaches nobody
				sub, err := connect(t, s, UserAdmin).SubscribeSync(">")
				if err != nil {
					t.Fatal(err)
				}
				for _, subject := range mayNot[u] {
					if err := nc.Publish(subject, nil); err != nil {
						t.Fatal(err)
					}
				}
				if m, err := sub.NextMsg(200 * time.Millisecond); err == nil {
					t.Errorf("a message of the system account arrived at %s", m.Subject)
				}
				return
			}
			for _, subject := range may[u] {
				if !mayPublish(t, nc, subject) {
					t.Errorf("may not publish to %s", subject)
				}
			}
			if u == UserAdmin {
				return
			}
			for _, subject := range append(mayNot[u], nobody...) {
				if mayPublish(t, nc, subject) {
					t.Errorf("may publish to %s", subject)
				}
			}
			for _, subject := range notOperators {
				if u != UserOps && mayPublish(t, nc, subject) {
					t.Errorf("may publish to %s", subject)
				}
			}
			for _, topic := range []string{"dkim", "clients", "tls", "slots", "sites"} {
				if got, want := maySubscribe(t, nc, "notice."+topic+".*"), slices.Contains(hears[u], topic); got != want {
					t.Errorf("hear notices of %s: got %v, want %v", topic, got, want)
				}
			}
			for subject, listener := range map[string]User{"tap.want": UserDelivery, "tap.line.*": UserOps} {
				if got, want := maySubscribe(t, nc, subject), u == listener; got != want {
					t.Errorf("subscribe to %s: got %v, want %v", subject, got, want)
				}
			}
			for _, other := range Users() {
				if got, want := maySubscribe(t, nc, "_INBOX_"+string(other)+".>"), other == u; got != want {
					t.Errorf("subscribe to the inbox of %s: got %v, want %v", other, got, want)
				}
			}
			for _, subject := range []string{">", "_INBOX.>", "mail.>", "dsn.>", "ready.>", "$JS.API.>", "$KV.>", "events.>", "notice.>", "tap.>"} {
				if maySubscribe(t, nc, subject) {
					t.Errorf("may subscribe to %s", subject)
				}
			}
		})
	}
}

func TestServersGoOnWithoutOneOfThem(t *testing.T) {
	s := startServers(t)
	// The client may be at the server that is cut off: it must notice.
	nc, err := s.Connect(UserAdmin, nats.PingInterval(time.Second), nats.MaxPingsOutstanding(2), nats.MaxReconnects(-1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	// A cluster without a leader answers nothing, so each try is short.
	until := func(what string, try func(context.Context) error) {
		t.Helper()
		var err error
		for ctx.Err() == nil {
			once, cancel := context.WithTimeout(ctx, 5*time.Second)
			err = try(once)
			cancel()
			if err == nil {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Fatalf("%s: %v", what, err)
	}
	publish := func(what string) {
		t.Helper()
		until(what, func(ctx context.Context) error {
			_, err := js.Publish(ctx, "x.a", []byte(what), jetstream.WithMsgID(what)) // a try without an answer may be stored
			return err
		})
	}
	until("create", func(ctx context.Context) error {
		_, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "X", Subjects: []string{"x.>"}, Replicas: Copies})
		return err
	})
	publish("whole")
	leader := -1
	until("find the leader", func(ctx context.Context) error {
		info, err := js.Stream(ctx, "X")
		if err != nil {
			return err
		}
		name := info.CachedInfo().Cluster.Leader
		if leader = slices.IndexFunc(s.All(), func(sv *Server) bool { return sv.Name == name }); leader < 0 {
			return fmt.Errorf("it is %q", name)
		}
		return nil
	})
	s.Isolate(leader, true)
	publish("leader cut off")
	s.Rejoin(leader)
	s.All()[leader].Kill()
	publish("old leader killed")
	until("replicas agree", func(ctx context.Context) error { // the killed one catches up
		st, err := js.Stream(ctx, "X")
		if err != nil {
			return err
		}
		c := st.CachedInfo()
		if n := countCurrent(c.Cluster); n != Copies-1 || c.State.LastSeq != 3 {
			return fmt.Errorf("%d current replicas, last sequence %d", n, c.State.LastSeq)
		}
		return nil
	})
}

func countCurrent(c *jetstream.ClusterInfo) int {
	n := 0
	for _, r := range c.Replicas {
		if r.Current {
			n++
		}
	}
	return n
}
