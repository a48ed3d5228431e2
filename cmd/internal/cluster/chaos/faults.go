package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"

	"postroad/cmd/internal/cluster"
	"postroad/cmd/internal/cluster/ledger"
	"postroad/cmd/internal/cluster/process"
	"postroad/cmd/internal/ops"
)

// errNoStart says that the queue does not come back after a fault.
var errNoStart = errors.New("the queue does not start again")

// settled is how long clients of the queue may need to go on after it is back.
const settled = 3 * time.Second

// faults breaks things until ctx ends.
func (h *harness) faults(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	if h.o.mode == modePower {
		return h.cutPower(ctx)
	}
	wg.Go(func() { h.operate(ctx) })
	if h.o.mode == modeR3 {
		wg.Go(func() { h.breakServers(ctx) })
	}
	h.killRoles(ctx)
	return nil
}

// enough reports whether all planned faults have happened. Steps that are hard
// to come to do not hold up the run for ever.
func (h *harness) enough() bool {
	h.mu.Lock()
	done, late := h.done >= h.o.kills, time.Since(h.loadBegan) > 2*h.o.duration
	h.mu.Unlock()
	noSteps := h.o.plant != "" || h.o.kills == 0 || h.o.mode == modePower
	return done && (noSteps || late || h.steps.left() == 0)
}

func (h *harness) count() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.done++
}

// interval waits for a random time, on average an even share of the run.
func (h *harness) interval(ctx context.Context) bool {
	if h.o.kills == 0 {
		<-ctx.Done()
		return false
	}
	mean := h.o.duration / time.Duration(h.o.kills)
	h.mu.Lock()
	wait := time.Duration(h.rng.ExpFloat64() * float64(mean))
	h.mu.Unlock()
	return sleep(ctx, min(max(wait, 20*time.Millisecond), 4*mean))
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// killRoles kills a random process at random moments.
func (h *harness) killRoles(ctx context.Context) {
	names := h.roles.Names()
	for h.interval(ctx) {
		name := names[h.draw(len(names))]
		if h.kill(name) {
			h.count()
		}
	}
}

// kill kills a process and notes what it had in hand.
func (h *harness) kill(name string) bool {
	f := h.fault(ledger.FaultKill, name)
	if !h.roles.Keeper(name).Kill() {
		return false
	}
	h.record(f)
	return true
}

// fault begins the note of something that happens to a process now.
func (h *harness) fault(kind ledger.FaultKind, name string) ledger.Fault {
	f := ledger.Fault{Kind: kind, Process: name, At: time.Now()}
	switch {
	case strings.HasPrefix(name, "delivery"):
		f.Open = h.receiver.Open(name)
	case h.servers == nil && name == cluster.QueueProcess, strings.HasPrefix(name, cluster.QueueProcess+"-"):
		f.Store = true // everybody's work hangs on it
		f.Open = h.receiver.Open("")
	}
	return f
}

// record writes a fault into the book; one of the queue when it is over.
func (h *harness) record(f ledger.Fault) {
	if h.o.verbose {
		h.note(fmt.Sprintf("%s %s %s (%d dialogues open)", f.Kind, f.Process, f.Note, f.Open), nil)
	}
	if !f.Store || !f.Until.IsZero() {
		h.book.Fault(f)
		return
	}
	h.away(1)
	h.watch.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if sleep(ctx, 50*time.Millisecond) {
			if err := h.roles.WaitQueue(ctx); err != nil && !h.isEnded() {
				h.note("after a fault", err)
			}
		}
		f.Until = time.Now().Add(settled)
		h.book.Fault(f)
		sleep(ctx, settled)
		h.away(-1)
	})
}

// away counts the faults of the queue that are not over: a role that starts
// meanwhile may say so and end.
func (h *harness) away(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.queueAway += n
}

func (h *harness) isEnded() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ended
}

// env is the environment of the next run of a process.
func (h *harness) env(name string) []string {
	var env []string
	if h.o.plant != "" {
		env = append(env, "POSTROAD_PLANT="+h.o.plant)
	}
	if h.o.plant == "" && h.o.mode != modePower && h.o.kills > 0 && !h.isCalm() && h.draw(3) > 0 {
		if armed := h.steps.arm(name); armed != "" {
			env = append(env, "POSTROAD_FAILPOINT="+armed)
		}
	}
	return env
}

// roleEnded hears that a postroad process ended.
func (h *harness) roleEnded(e process.Exit, killed bool) {
	step := h.steps.ended(e.Name, !killed && e.Signal == syscall.SIGKILL)
	h.mu.Lock()
	ignore := killed || h.ended || h.cutting && e.Name == cluster.QueueProcess ||
		h.queueAway > 0 && e.Signal == 0 && (e.Name != cluster.QueueProcess || h.servers != nil)
	if !ignore && step == "" {
		h.crashed = append(h.crashed, e)
	}
	h.mu.Unlock()
	if ignore {
		return
	}
	f := h.fault(ledger.FaultExit, e.Name)
	if f.Note = e.String(); step != "" {
		f.Kind, f.Note = ledger.FaultFailpoint, step
	}
	f.At = e.At
	h.record(f)
}

// serverEnded hears that a queue server ended.
func (h *harness) serverEnded(e process.Exit, killed bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !killed && !h.ended {
		h.crashed = append(h.crashed, e)
	}
}

// operate gives orders now and then, so that jobs also move by an operator's
// hand.
func (h *harness) operate(ctx context.Context) {
	for sleep(ctx, time.Duration(2+h.draw(5))*time.Second) {
		domain := fmt.Sprintf("%d.%s", h.draw(3), ledger.RecipientDomain)
		bounded, cancel := context.WithTimeout(ctx, 20*time.Second)
		var err error
		switch h.draw(5) {
		case 0:
			err = h.order(bounded, ops.ActionReturn, string(ledger.WantReturn)+domain)
		case 1:
			err = h.order(bounded, ops.ActionCancel, string(ledger.WantCancel)+domain)
		case 2:
			err = h.order(bounded, ops.ActionRetry, string(ledger.WantWait)+domain)
		default:
			err = h.suspend(bounded, string(ledger.WantWait)+domain)
		}
		cancel()
		if err != nil && h.o.verbose {
			h.note("an order about "+domain, err) // it may be interrupted and given again
		}
	}
}

func (h *harness) order(ctx context.Context, a ops.Action, domain string) error {
	o := ops.Order{Selection: ops.Selection{Domain: domain}}
	if a == ops.ActionReturn {
		o.Why = "as the operator wishes"
	}
	_, err := h.roles.Ops().Do(ctx, a, o)
	return err
}

// suspend keeps mail from a domain for a moment. What waits for it is then pulled forward.
func (h *harness) suspend(ctx context.Context, domain string) error {
	if _, err := h.roles.Ops().Suspend(ctx, ops.SiteOrder{Name: domain, Reason: "chaos", For: time.Minute}); err != nil {
		return err
	}
	if err := h.order(ctx, ops.ActionRetry, domain); err != nil { // so that workers meet the suspension
		return err
	}
	sleep(ctx, 2*time.Second)
	_, err := h.roles.Ops().Resume(ctx, ops.SiteOrder{Name: domain})
	return err
}

// cutPower takes the power from the queue's disk again and again.
func (h *harness) cutPower(ctx context.Context) error {
	for h.interval(ctx) {
		if err := h.cut(ctx); err != nil {
			return err
		}
		h.count()
	}
	return nil
}

// cut takes the power from the queue's machine: the process stops at the same moment as the disk and never says a word again.
// Were it to go on, it could confirm a sync that the kernel calls done while the journal is already given up (power's
// TestSyncsAtTheMomentOfTheCut); a machine without power cannot. What a process does whose disk fails is a test of queue/embedded.
func (h *harness) cut(ctx context.Context) error {
	k := h.roles.Keeper(cluster.QueueProcess)
	f := h.fault(ledger.FaultPower, cluster.QueueProcess)
	h.setCutting(true)
	if k.Freeze() == nil { // else it does not run, and says nothing either
		time.Sleep(2 * time.Millisecond) // until all of its threads stand still
	}
	if err := h.disk.Cut(); err != nil {
		return err
	}
	release := k.KillAndHold()
	err := h.disk.Mount(context.WithoutCancel(ctx))
	h.setCutting(false)
	release()
	if err != nil {
		return err
	}
	h.record(f)
	bounded, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := h.roles.WaitQueue(bounded); err != nil && ctx.Err() == nil {
		return fmt.Errorf("%w after a power cut: %w", errNoStart, err)
	}
	return nil
}

func (h *harness) setCutting(v bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cutting = v
}
