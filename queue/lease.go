package queue

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// leaseTTL is how long a lease outlives the last sign of its holder. The holder itself stops counting on it half a second
// earlier, measured from before its request.
const leaseTTL = 15 * time.Second

// Lead runs fn in exactly one process of the cluster at a time: in the one that holds the lease of that name. The others wait, and one
// of them takes over within about 15 s of the end of the one that led. fn's context ends when the lease may have passed on; where fn
// returns before, it is called again a second later. Lead returns when ctx ends and fn has returned.
func (q *Queue) Lead(ctx context.Context, name string, fn func(context.Context)) {
	q.holdLease(ctx, leadPrefix+encodeToken(name), func(ctx context.Context) {
		for ctx.Err() == nil {
			fn(ctx)
			_ = sleep(ctx, time.Second)
		}
	})
}

// leadPrefix sets leases of Lead apart from the queue's own, so that a role can be allowed to hold just these.
const leadPrefix = "lead."

// holdLease runs fn while this process holds the named lease of the cluster, and waits while another one does. fn's
// context ends when the lease may have passed on. It returns when ctx ends.
func (q *Queue) holdLease(ctx context.Context, name string, fn func(context.Context)) {
	defer q.leases.note(name, nil, time.Time{})
	for ctx.Err() == nil {
		asked := time.Now()
		rev, err := q.kv.leases.Create(ctx, name, []byte(q.o.Node), jetstream.KeyTTL(leaseTTL))
		if errors.Is(err, jetstream.ErrKeyExists) {
			q.leases.note(name, nil, asked)
			_ = sleep(ctx, leaseTTL/5)
			continue
		}
		if err != nil {
			q.trouble(err)
			if why := q.whyNoLease(name, err); q.leases.note(name, why, asked) {
				q.o.Logger.Warn("a lease cannot be taken, it is tried again", "lease", leaseName(name), "error", why)
			}
			_ = sleep(ctx, leaseTTL/5)
			continue
		}
		q.leases.note(name, nil, asked)
		q.whileRenewed(ctx, name, rev, asked.Add(leaseTTL-500*time.Millisecond), fn)
	}
}

// whileRenewed renews the lease until that fails for good, and gives it up when ctx ends.
func (q *Queue) whileRenewed(ctx context.Context, name string, rev uint64, until time.Time, fn func(context.Context)) {
	held, lost := context.WithCancel(ctx)
	defer lost()
	done := make(chan struct{})
	go func() {
		defer close(done)
		fn(held)
	}()
	defer func() { lost(); <-done }()
	over := time.AfterFunc(time.Until(until), lost) // in time, also while a renewal waits for its answer
	defer over.Stop()
	for sleep(ctx, leaseTTL/5) == nil {
		asked := time.Now()
		next, err := q.renew(held, name, rev)
		switch {
		case err == nil && over.Reset(time.Until(asked.Add(leaseTTL-500*time.Millisecond))):
			rev = next
		case ctx.Err() == nil && held.Err() != nil, hasCode(err, codeWrongLastSeq, codeWrongLastSeqNew):
			q.o.Logger.Warn("lease lost", "lease", name, "error", err)
			return
		}
	}
	lost()
	<-done
	ctx, cancel := q.bound(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = q.kv.leases.Delete(ctx, name, jetstream.LastRevision(rev)) // else it ends by itself
}

// renew writes the key again with its TTL, which the library's Update cannot carry.
func (q *Queue) renew(ctx context.Context, name string, rev uint64) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, leaseTTL/5)
	defer cancel()
	m := newMsg("$KV."+leaseBucket+"."+name, []byte(q.o.Node))
	m.Header.Set(jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(rev, 10))
	m.Header.Set(jetstream.MsgTTLHeader, leaseTTL.String())
	ack, err := q.js.PublishMsg(ctx, m, jetstream.WithRetryAttempts(0))
	q.trouble(err)
	if err != nil {
		return 0, fmt.Errorf("renew lease %s: %w", name, err)
	}
	return ack.Sequence, nil
}

// leaseFaults remembers which leases this process cannot take although nobody is known to have them.
type leaseFaults struct {
	mu sync.Mutex
	m  map[string]leaseFault // by key
}

type leaseFault struct {
	since time.Time
	why   error
	said  bool
}

// note remembers how a try to take a lease ended; nil: well, or another process has it. It reports, once, that this has failed for longer than
// a lease lasts.
func (f *leaseFaults) note(name string, why error, now time.Time) (say bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if why == nil {
		delete(f.m, name)
		return false
	}
	if f.m == nil {
		f.m = make(map[string]leaseFault)
	}
	x, failing := f.m[name]
	if !failing {
		x.since = now
	}
	if !failing || isRefusal(why) { // which says more than that no answer came
		x.why = why
	}
	say = !x.said && now.Sub(x.since) > leaseTTL
	x.said = x.said || say
	f.m[name] = x
	return say
}

// conditions tell of the leases that could not be taken for longer than a lease lasts.
func (f *leaseFaults) conditions(now time.Time) []Condition {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []Condition
	for _, name := range slices.Sorted(maps.Keys(f.m)) {
		x := f.m[name]
		if now.Sub(x.since) <= leaseTTL {
			continue
		}
		list = append(list, Condition{Part: "queue", Since: x.since, Text: fmt.Sprintf("the lease %s cannot be taken, this process does not do its work: %v", leaseName(name), x.why),
			Do: "put the accounts.conf of this version on the queue servers (`nats-server --signal reload`); it is tried again every three seconds"})
	}
	return list
}

func isRefusal(err error) bool { return errors.Is(err, nats.ErrPermissionViolation) }

// whyNoLease finds the server's refusal: it comes besides the request, which ends without an answer.
func (q *Queue) whyNoLease(name string, err error) error {
	if last := q.nc.LastError(); last != nil && isRefusal(last) && strings.Contains(last.Error(), "$KV."+leaseBucket+"."+name) {
		return last
	}
	return err
}

// leaseName is the name of a lease for people.
func leaseName(key string) string {
	if led, is := strings.CutPrefix(key, leadPrefix); is {
		if plain, err := decodeToken(led); err == nil {
			return plain
		}
	}
	return key
}

// Lease says who does what only one process of the cluster does at a time.
type Lease struct {
	Name   string    `json:"name"` // reconciler, or a name of Lead
	Holder string    `json:"holder"`
	Seen   time.Time `json:"seen"` // the last sign of its holder
}

// Leases lists the leases that are held.
func (q *Queue) Leases(ctx context.Context) ([]Lease, error) {
	var leases []Lease
	err := q.bucketValues(ctx, leaseBucket, func(s *stored) {
		name := strings.TrimPrefix(s.subject, "$KV."+leaseBucket+".")
		leases = append(leases, Lease{Name: leaseName(name), Holder: string(s.data), Seen: s.time})
	})
	if err != nil {
		return nil, fmt.Errorf("list leases: %w", err)
	}
	return leases, nil
}
