package ops

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"postroad/queue"
)

const (
	silentAfter = 25 * time.Second // without an announcement, two of which are missing then
	signerSlow  = 10 * time.Minute // that a mail may be with the signer or before it
	takenWithin = 10 * time.Minute // by delivery, while it takes nothing else of the same lane
	laneSlow    = time.Hour        // that a ready job may wait for its turn: a million mails at once take less
	dialogueMax = 4 * time.Hour    // that a ready job may be in hand: there are hosts that answer each command after minutes
	copySilent  = 15 * time.Second // without a word of a queue server to the leader
	nearlyFull  = 0.95             // of a bucket
)

// judge finds out what is wrong: the cause first, then what follows from it.
func (st *Status) judge(now time.Time) {
	st.Attention = []Attention{}
	st.judgeReach()
	st.judgeRoles()
	st.judgeSilence(now)
	st.judgeConditions()
	st.judgeRoutes(now)
	if st.Queue != nil {
		st.judgeMissing()
		st.judgeKeys(now)
		st.judgeLanes(now)
		st.judgeHeld()
		st.judgeStreams()
	}
	st.Well = len(st.Attention) == 0
}

func (st *Status) attend(a Attention) { st.Attention = append(st.Attention, a) }

func (st *Status) judgeReach() {
	if st.QueueErr != "" {
		st.attend(Attention{Part: "queue", Text: "the queue does not answer: " + st.QueueErr,
			Do: "see that two of three queue servers run and that this machine reaches them (queue.urls)"})
	}
	if st.NodesErr != "" {
		st.attend(Attention{Part: "nodes", Text: "the processes of the cluster cannot be listed: " + st.NodesErr,
			Do: "upgrade the process with queue.manage: true, and accounts.conf of the queue servers"})
	}
}

// judgeRoles finds roles that nobody has.
func (st *Status) judgeRoles() {
	if st.NodesErr != "" {
		return
	}
	for _, r := range []struct{ role, follows string }{
		{"ingress", "no mail is accepted"}, {"signer", "mail is accepted and waits for its signature"}, {"delivery", "mail waits and nothing is delivered"},
	} {
		has := func(n queue.Node) bool { return !n.Draining && slices.Contains(n.Roles, r.role) }
		if !slices.ContainsFunc(st.Nodes, has) {
			st.attend(Attention{Part: "nodes", Text: fmt.Sprintf("no process has the role %s: %s", r.role, r.follows),
				Do: "start one: postroad serve --roles " + r.role})
		}
	}
}

func (st *Status) judgeSilence(now time.Time) {
	for _, n := range st.Nodes {
		if now.Sub(n.Seen) > silentAfter && !n.Draining {
			st.attend(Attention{Part: "nodes", Text: n.Name + " has not been heard of", Nodes: []string{n.Name}, Since: n.Seen,
				Do: "see whether it runs on " + n.Host + " and reaches the queue; what it had in hand goes to others by itself"})
		}
	}
}

// partOrder puts causes before what follows from them.
var partOrder = []string{"queue", "secrets", "signer"}

// judgeConditions gathers what processes say of themselves; keys that mail waits for are told of in judgeKeys.
func (st *Status) judgeConditions() {
	var list []Attention
	for _, n := range st.Nodes {
		for _, c := range n.Conditions {
			if c.About == "" || st.Queue == nil {
				list = join(list, n.Name, c)
			}
		}
	}
	rank := func(a Attention) int {
		if i := slices.Index(partOrder, a.Part); i >= 0 {
			return i
		}
		return len(partOrder)
	}
	slices.SortStableFunc(list, func(a, b Attention) int { return cmp.Or(cmp.Compare(rank(a), rank(b)), a.Since.Compare(b.Since)) })
	st.Attention = append(st.Attention, list...)
}

// join adds what a process says, to what others have said in the same words.
func join(list []Attention, node string, c queue.Condition) []Attention {
	for i := range list {
		if a := &list[i]; a.Part == c.Part && a.Text == c.Text {
			a.Nodes = append(a.Nodes, node)
			if c.Since.Before(a.Since) {
				a.Since = c.Since
			}
			return list
		}
	}
	return append(list, Attention{Part: c.Part, Text: c.Text, Nodes: []string{node}, Since: c.Since, Do: c.Do})
}

// judgeKeys says how many mails wait for keys, of which domains and why.
func (st *Status) judgeKeys(now time.Time) {
	var every []Attention
	about := make(map[string][]Attention) // by domain
	for _, n := range st.Nodes {
		for _, c := range n.Conditions {
			switch c.About {
			case "":
			case queue.EveryDomain:
				every = join(every, n.Name, c)
			default:
				about[c.About] = join(about[c.About], n.Name, c)
			}
		}
	}
	for _, a := range every {
		a.Text = fmt.Sprintf("%s for their signatures: %s", wait(st.unsigned()), a.Text)
		st.attend(a)
	}
	for _, k := range st.Queue.Waiting.Keys {
		if len(every) > 0 && len(about[k.Author]) == 0 {
			continue // counted above
		}
		a := Attention{Part: "signer", Since: k.Oldest, Do: "postroad dkim list says which keys there are; postroad queue list --unsigned --author " + k.Author}
		if said := about[k.Author]; len(said) > 0 {
			a.Nodes, a.Do = said[0].Nodes, said[0].Do
		}
		a.Text = fmt.Sprintf("%s for keys of %s: %s", wait(uint64(k.Mails)), k.Author, k.Reason)
		delete(about, k.Author)
		st.attend(a)
	}
	var rest []Attention
	for domain, said := range about {
		if st.Queue.Waiting.KeysWhole && !st.waitsFor(domain) {
			continue // another signer has signed it meanwhile
		}
		rest = append(rest, said...)
	}
	slices.SortFunc(rest, func(a, b Attention) int { return cmp.Or(a.Since.Compare(b.Since), strings.Compare(a.Text, b.Text)) })
	st.Attention = append(st.Attention, rest...)
	if len(every) == 0 {
		st.judgeSigner(now)
	}
}

// waitsFor reports that mail waits for keys of a domain: mail of its authors, of those below it, or whose reason names it.
func (st *Status) waitsFor(domain string) bool {
	return slices.ContainsFunc(st.Queue.Waiting.Keys, func(k queue.WaitKeys) bool {
		return k.Author == domain || strings.HasSuffix(k.Author, "."+domain) || strings.Contains(k.Reason, domain)
	})
}

// judgeSigner finds that what the signer does first takes long: new mail, and jobs that go through it again.
func (st *Status) judgeSigner(now time.Time) {
	var jobs uint64
	var since time.Time
	for _, l := range st.Queue.Lines {
		if (l.Name == queue.LineSigner || l.Name == queue.LineSign) && isOver(l.First, signerSlow, now) {
			jobs += l.Unfinished
			since = earlier(since, l.First)
		}
	}
	if jobs > 0 {
		st.attend(Attention{Part: "signer", Text: wait(jobs) + " for the signer", Since: since,
			Do: "see that processes with the role signer run and have time; their log says what they do"})
	}
}

// judgeLanes finds ready jobs that delivery does not take, or does not finish with. One whose site wants fewer connections or less mail is not
// ready: it waits until later.
func (st *Status) judgeLanes(now time.Time) {
	var untaken, behind, inHand trouble
	for _, l := range st.Queue.Lines {
		switch {
		case l.Name == queue.LineSigner || l.Name == queue.LineSign:
		case l.Untaken > 0 && isOver(l.Head, takenWithin, now) && now.Sub(l.LastTaken) > takenWithin:
			untaken.add(l.Untaken, l.Head)
		case l.Untaken > 0 && isOver(l.Head, laneSlow, now) && !l.Slow:
			behind.add(l.Untaken, l.Head)
		case isOver(l.First, dialogueMax, now) && !isOver(l.Head, laneSlow, now):
			inHand.add(l.Unfinished-l.Untaken, l.First)
		}
	}
	for _, t := range []struct {
		trouble
		what, do string
	}{
		{untaken, "and nobody takes them", "see that processes with the role delivery run and reach the queue; their log says what they do"},
		{behind, "and delivery does not keep up", "start further processes with the role delivery; nothing is wrong with the mail"},
		{inHand, "and delivery does not finish them", "see the log of the processes with the role delivery; start one anew, and what it has in hand goes to others"},
	} {
		if t.jobs > 0 {
			jobs := fmt.Sprintf("%d jobs are ready", t.jobs)
			if t.jobs == 1 {
				jobs = "1 job is ready"
			}
			st.attend(Attention{Part: "delivery", Text: jobs + " " + t.what, Since: t.since, Do: t.do})
		}
	}
}

// trouble are jobs that do not get on.
type trouble struct {
	jobs  uint64
	since time.Time
}

func (t *trouble) add(jobs uint64, since time.Time) {
	t.jobs += jobs
	t.since = earlier(t.since, since)
}

// isOver reports that a time is known and longer ago than it may be.
func isOver(at time.Time, may time.Duration, now time.Time) bool {
	return !at.IsZero() && now.Sub(at) > may
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// judgeMissing tells of what could not be found out: nobody can say that it is well.
func (st *Status) judgeMissing() {
	for _, m := range st.Queue.Missing {
		what, why, _ := strings.Cut(m, ": ")
		st.attend(Attention{Part: "queue", Text: what + " cannot be found out: " + why,
			Do: "ask again in a minute; if it stays so, see that the queue servers have time to answer, and that their accounts.conf is of this version"})
	}
}

// unsigned is about how many mails wait for their signatures.
func (st *Status) unsigned() uint64 {
	n := st.Queue.Counts.Incoming
	for _, k := range st.Queue.Waiting.Keys {
		n += uint64(k.Mails)
	}
	return n
}

func wait(mails uint64) string {
	if mails == 1 {
		return "1 mail waits"
	}
	return fmt.Sprintf("%d mails wait", mails)
}

// judgeHeld tells of mail that an operator has to decide about.
func (st *Status) judgeHeld() {
	for _, h := range st.Queue.Waiting.Held {
		if !h.Decide {
			continue // somebody wanted it so
		}
		mails := fmt.Sprintf("%d mails are", h.Mails)
		switch {
		case h.More:
			mails = fmt.Sprintf("%d mails or more are", h.Mails)
		case h.Mails == 1:
			mails = "1 mail is"
		}
		text := fmt.Sprintf("%s set aside (%s)", mails, h.Why)
		if h.Reason != "" {
			text += ": " + h.Reason
		}
		st.attend(Attention{Part: "held", Text: text, Since: h.Oldest,
			Do: "look at each with `postroad queue list` and `postroad trace ID`, then `postroad queue retry ID` or `postroad queue cancel ID`"})
	}
}

// judgeStreams tells of queue servers that are missing, and of what is nearly full and does not say so itself.
func (st *Status) judgeStreams() {
	away := make(map[string]bool)
	var leaderless, few []string
	for _, s := range st.Queue.Streams {
		if s.Leader == "" {
			leaderless = append(leaderless, s.Name)
		}
		if s.Copies > 1 && s.Leader != "" && len(s.Replicas)+1 < s.Copies {
			few = append(few, s.Name)
		}
		for _, r := range s.Replicas {
			if r.Offline || !r.Current && r.Active > copySilent {
				away[r.Name] = true
			}
		}
		if isBucket := strings.HasPrefix(s.Name, "KV_"); isBucket && s.MaxBytes > 0 && float64(s.Bytes) > nearlyFull*float64(s.MaxBytes) {
			st.attend(Attention{Part: "queue", Text: fmt.Sprintf("the bucket %s is nearly full", strings.TrimPrefix(s.Name, "KV_")),
				Do: "what it keeps ends by itself; if it stays full, tell the authors of Postroad how many clients and nodes there are"})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(away)) {
		st.attend(Attention{Part: "queue", Text: "the queue server " + name + " is away or behind: its copies do not count",
			Do: "start it again; one more that goes away, and no mail is accepted"})
	}
	if len(leaderless) > 0 {
		st.attend(Attention{Part: "queue", Text: "no queue server leads " + strings.Join(leaderless, ", "), Do: "an election takes some seconds; if it lasts, start the missing servers"})
	}
	if len(few) > 0 {
		st.attend(Attention{Part: "queue", Text: "there are fewer copies than wanted of " + strings.Join(few, ", "), Do: "see `nats stream cluster` for the servers that should have one"})
	}
}
