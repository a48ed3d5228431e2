package ops_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"postroad/cmd/internal/ops"
	"postroad/queue"
)

// node is one with all roles that has said so a moment ago.
func node(name string, conditions ...queue.Condition) queue.Node {
	return queue.Node{Name: name, Roles: []string{"ingress", "signer", "delivery", "ops"}, Host: name + ".example", Version: "1", Seen: time.Now(),
		Started: time.Now().Add(-time.Hour), Conditions: conditions}
}

func TestNodesUsesAndNotices(t *testing.T) {
	at := time.Now().UTC().Truncate(time.Second)
	f := &fake{nodes: []queue.Node{{Name: "a", Seen: at}}, uses: []queue.Use{{Client: "web", Password: "p1", Last: at}}}
	o := options(t, f)
	start(t, o)
	c := ops.NewClient(o.Socket)
	nodes, err := c.Nodes(t.Context())
	if d := cmp.Diff(f.nodes, nodes); err != nil || d != "" {
		t.Error(err, d)
	}
	uses, err := c.Uses(t.Context())
	if d := cmp.Diff(f.uses, uses); err != nil || d != "" {
		t.Error(err, d)
	}
	if spent, err := c.Spendings(t.Context(), "source/"); err != nil || len(spent) != 1 || spent[0].Key != "source/one" || spent[0].Used != 3 {
		t.Errorf("got %+v, %v", spent, err)
	}
	if err := c.Notify(t.Context(), "dkim", "Example.com"); err != nil {
		t.Error(err)
	}
	if d := cmp.Diff([]string{"notify dkim Example.com"}, f.calls()); d != "" {
		t.Error(d)
	}
	f.broken = errors.New("no leader")
	for name, call := range map[string]func() error{
		"nodes":     func() error { _, err := c.Nodes(t.Context()); return err },
		"uses":      func() error { _, err := c.Uses(t.Context()); return err },
		"spendings": func() error { _, err := c.Spendings(t.Context(), ""); return err },
		"notify":    func() error { return c.Notify(t.Context(), "dkim", "x") },
	} {
		if err := call(); err == nil || err.Error() != "no leader" {
			t.Errorf("%s: got %v, want the reason", name, err)
		}
	}
}

// status asks a server that has f for its queue.
func status(t *testing.T, f *fake) *ops.Status {
	t.Helper()
	o := options(t, f)
	self := node("self")
	o.Self = func() queue.Node { return self }
	start(t, o)
	st, err := ops.NewClient(o.Socket).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// said is what needs attention, one a line.
func said(st *ops.Status) string {
	var b strings.Builder
	for _, a := range st.Attention {
		fmt.Fprintf(&b, "%s: %s %v\n", a.Part, a.Text, a.Nodes)
	}
	return b.String()
}

func TestStatusOfAHealthyCluster(t *testing.T) {
	st := status(t, &fake{nodes: []queue.Node{node("a"), node("b")}, overview: queue.Overview{
		Waiting: queue.Waiting{Jobs: 3, Domains: []queue.WaitDomain{{Domain: "x.example", Jobs: 3}}, Held: []queue.HeldMail{{Why: "operator", Mails: 2}}},
		Streams: []queue.Stream{{Name: "MAIL", Leader: "q1", Copies: 3, Replicas: []queue.Replica{{Name: "q2", Current: true}, {Name: "q3", Current: true}}}},
	}})
	if !st.Well || len(st.Attention) != 0 || len(st.Nodes) != 3 || st.Asked != "self" || st.Queue == nil {
		t.Errorf("got %+v, want that all is well on three nodes: deferrals and an operator's hold are no trouble", st)
	}
}

func TestStatusOfASickCluster(t *testing.T) {
	now := time.Now()
	sealed := queue.Condition{Part: "secrets", Text: "Vault is sealed (https://vault:8200)", Since: now.Add(-time.Minute), Do: "unseal it"}
	earlier := sealed
	earlier.Since = now.Add(-2 * time.Minute)
	every := queue.Condition{Part: "signer", About: queue.EveryDomain, Text: "keys are out of reach: sealed", Since: now}
	noKey := queue.Condition{Part: "signer", About: "no.example", Text: "mail of no.example waits", Since: now, Do: "make one"}
	silent := node("c")
	silent.Seen = now.Add(-30 * time.Second)
	f := &fake{nodes: []queue.Node{node("a", sealed, every), node("b", earlier, every, noKey), silent}, overview: queue.Overview{
		Counts: queue.Counts{Incoming: 5},
		Waiting: queue.Waiting{
			Keys: []queue.WaitKeys{{Author: "no.example", Mails: 1, Reason: "no DKIM key for no.example"}, {Author: "away.example", Mails: 6, Reason: "out of reach"}},
			Held: []queue.HeldMail{{Why: "returned", Mails: 2, Decide: true}, {Why: "operator", Mails: 1}},
		},
		Streams: []queue.Stream{
			{Name: "MAIL", Leader: "q1", Copies: 3, Replicas: []queue.Replica{{Name: "q2", Offline: true}, {Name: "q3", Current: true}}},
			{Name: "JOBS", Copies: 3},
			{Name: "KV_uses", Leader: "q1", Copies: 1, Bytes: 99, MaxBytes: 100},
		},
	}}
	st := status(t, f)
	want := `nodes: c has not been heard of [c]
secrets: Vault is sealed (https://vault:8200) [a b]
signer: 12 mails wait for their signatures: keys are out of reach: sealed [a b]
signer: 1 mail waits for keys of no.example: no DKIM key for no.example [b]
held: 2 mails are set aside (returned) []
queue: the bucket uses is nearly full []
queue: the queue server q2 is away or behind: its copies do not count []
queue: no queue server leads JOBS []
`
	if d := cmp.Diff(want, said(st)); d != "" || st.Well {
		t.Error(d)
	}
	if !st.Attention[1].Since.Equal(earlier.Since) || st.Attention[1].Do != "unseal it" || st.Attention[3].Do != "make one" {
		t.Errorf("got %+v, want the earlier time, and what to do", st.Attention[1])
	}
	for _, a := range st.Attention {
		if a.Do == "" && a.Part != "signer" {
			t.Errorf("%s: nothing to do about it", a.Text)
		}
	}
}

// TestStatusOfLines: what is first in each line is judged by its own age.
func TestStatusOfLines(t *testing.T) {
	ago := func(d time.Duration) time.Time { return time.Now().Add(-d) }
	for name, c := range map[string]struct {
		lines []queue.Line
		want  string
	}{
		"signer hangs":        {[]queue.Line{{Name: "signer", Unfinished: 4, First: ago(11 * time.Minute)}}, "signer: 4 mails wait for the signer []\n"},
		"resigning hangs":     {[]queue.Line{{Name: "sign", Unfinished: 1, First: ago(11 * time.Minute)}}, "signer: 1 mail waits for the signer []\n"},
		"signer is busy":      {[]queue.Line{{Name: "signer", Unfinished: 100_000, First: ago(9 * time.Minute), Untaken: 99_000, Head: ago(9 * time.Minute)}}, ""},
		"nobody takes":        {[]queue.Line{{Name: "lane-0", Unfinished: 5, Untaken: 3, Head: ago(11 * time.Minute), LastTaken: ago(12 * time.Minute)}}, "delivery: 3 jobs are ready and nobody takes them []\n"},
		"nobody took any":     {[]queue.Line{{Name: "lane-s0", Slow: true, Unfinished: 1, Untaken: 1, Head: ago(11 * time.Minute)}}, "delivery: 1 job is ready and nobody takes them []\n"},
		"burst":               {[]queue.Line{{Name: "lane-0", Unfinished: 99, First: ago(50 * time.Minute), Untaken: 98, Head: ago(50 * time.Minute), LastTaken: ago(time.Second)}}, ""},
		"falls behind":        {[]queue.Line{{Name: "lane-0", Unfinished: 99, Untaken: 98, Head: ago(61 * time.Minute), LastTaken: ago(time.Second)}}, "delivery: 98 jobs are ready and delivery does not keep up []\n"},
		"slow domains":        {[]queue.Line{{Name: "lane-s0", Slow: true, Unfinished: 99, Untaken: 98, Head: ago(5 * time.Hour), LastTaken: ago(time.Second)}}, ""},
		"long dialogue":       {[]queue.Line{{Name: "lane-0", Unfinished: 2, First: ago(3 * time.Hour), LastTaken: ago(3 * time.Hour)}}, ""},
		"never finished":      {[]queue.Line{{Name: "lane-0", Unfinished: 2, First: ago(5 * time.Hour), LastTaken: ago(5 * time.Hour)}}, "delivery: 2 jobs are ready and delivery does not finish them []\n"},
		"nobody knows of any": {[]queue.Line{{Name: "signer", Unfinished: 2}, {Name: "lane-0", Unfinished: 2, Untaken: 2}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			st := status(t, &fake{overview: queue.Overview{Lines: c.lines,
				Oldest: &queue.Oldest{Accepted: ago(20 * time.Hour), Place: queue.PlaceLater}}})
			if d := cmp.Diff(c.want, said(st)); d != "" || st.Well != (c.want == "") {
				t.Error(d)
			}
		})
	}
}

func TestStatusOfWhatIsNotKnown(t *testing.T) {
	st := status(t, &fake{overview: queue.Overview{Missing: []string{"oldest mail: no answer in time"}, Aside: []string{"bucket uses: stream not found"},
		Waiting: queue.Waiting{Held: []queue.HeldMail{{Why: "returned", Mails: 500, Decide: true, More: true}}}}})
	want := "queue: oldest mail cannot be found out: no answer in time []\nheld: 500 mails or more are set aside (returned) []\n"
	if d := cmp.Diff(want, said(st)); d != "" || st.Well {
		t.Error(d)
	}
}

// TestStatusOfSignedDomains: what a signer says of a domain whose mail another has signed is over when no mail waits.
func TestStatusOfSignedDomains(t *testing.T) {
	noKey := func(domain string) queue.Condition {
		return queue.Condition{Part: "signer", About: domain, Text: "mail of " + domain + " waits for its signature: there is no DKIM key for it"}
	}
	nodes := []queue.Node{node("a", noKey("gone.example"), noKey("up.example"), noKey("relay.example"))}
	keys := []queue.WaitKeys{{Author: "sub.up.example", Mails: 1, Reason: "no DKIM key for x.example, and no DKIM key for relay.example"}}
	for whole, want := range map[bool]string{true: "sub.up up relay", false: "sub.up gone up relay"} {
		st := status(t, &fake{nodes: nodes, overview: queue.Overview{Waiting: queue.Waiting{Keys: keys, KeysWhole: whole}}})
		got := said(st)
		for _, name := range []string{"sub.up", "gone", "up", "relay"} {
			is := strings.Contains(got, "mail of "+name+".example") || strings.Contains(got, "keys of "+name+".example")
			if is != slices.Contains(strings.Fields(want), name) {
				t.Errorf("whole %t: got\n%swant %s", whole, got, want)
			}
		}
	}
}

// TestStatusOfMissingRoles: a process that stops has none any more.
func TestStatusOfMissingRoles(t *testing.T) {
	stopping := node("a")
	stopping.Draining = true
	f := &fake{nodes: []queue.Node{stopping, {Name: "in", Roles: []string{"ingress"}, Seen: time.Now()}}}
	o := options(t, f)
	start(t, o)
	st, err := ops.NewClient(o.Socket).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := "nodes: no process has the role signer: mail is accepted and waits for its signature []\nnodes: no process has the role delivery: mail waits and nothing is delivered []\n"
	if d := cmp.Diff(want, said(st)); d != "" {
		t.Error(d)
	}
}

func TestStatusWithoutQueue(t *testing.T) {
	st := status(t, &fake{broken: errors.New("no leader")})
	if st.Well || st.Queue != nil || len(st.Nodes) != 1 || !strings.Contains(said(st), "the queue does not answer: no leader") || !strings.Contains(said(st), "cannot be listed") {
		t.Errorf("got %+v, want what this process knows by itself", st)
	}
}

// TestStatusIsGatheredOnce: many who ask at once cost no more than one.
func TestStatusIsGatheredOnce(t *testing.T) {
	f := &fake{}
	o := options(t, f)
	start(t, o)
	began := time.Now()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := ops.NewClient(o.Socket).Status(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n, most := len(f.calls()), 2+int(time.Since(began)/(2*time.Second)); n > most { // an answer is two seconds old at most
		t.Errorf("the queue was looked at %d times, want %d at most", n, most)
	}
}
