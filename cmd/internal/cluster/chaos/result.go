package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"postroad/cmd/internal/cluster"
	"postroad/cmd/internal/cluster/ledger"
	"postroad/cmd/internal/ops"
	"postroad/queue"
)

// afterlife kills the whole queue without warning and starts it again: what
// comes back from the dead must not be delivered.
func (h *harness) afterlife(ctx context.Context) error {
	const quiet = 8 * time.Second
	switch h.o.mode {
	case modeR3:
		h.killAllServers(ctx, 0)
	case modePower:
		if err := h.cut(ctx); err != nil {
			return err
		}
	default:
		h.kill(cluster.QueueProcess)
	}
	if !sleep(ctx, time.Second) {
		return context.Cause(ctx)
	}
	bounded, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := h.roles.WaitQueue(bounded); err != nil {
		return fmt.Errorf("the queue does not come back: %w", err)
	}
	h.note("the queue was killed once more", nil)
	if !sleep(ctx, quiet) {
		return context.Cause(ctx)
	}
	return nil
}

// release lets through what waited for the whole run.
func (h *harness) release(ctx context.Context) error {
	h.receiver.Release()
	for i := range 3 {
		domain := fmt.Sprintf("%d.%s", i, ledger.RecipientDomain)
		for action, want := range map[ops.Action]ledger.Want{ops.ActionReturn: ledger.WantReturn, ops.ActionCancel: ledger.WantCancel} {
			if err := h.insist(ctx, func(ctx context.Context) error { return h.order(ctx, action, string(want)+domain) }); err != nil {
				return err
			}
		}
	}
	return h.insist(ctx, func(ctx context.Context) error {
		_, err := h.roles.Ops().Do(ctx, ops.ActionRetry, ops.Order{Selection: ops.Selection{All: true}})
		return err
	})
}

// patience is how long a queue that was killed may take on a busy machine to look through its store, before it takes orders.
const patience = 3 * time.Minute

// insist repeats what may fail while the queue is finding itself again.
func (h *harness) insist(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := do(ctx)
		if err == nil || !sleep(ctx, time.Second) {
			return err
		}
	}
}

// handsOut is how long a queue that was killed may take to hand out again what was in somebody's hands, and that one to see that
// it was finished: its AckWait of 30 s, and time to do so.
const handsOut = 75 * time.Second

// account closes the account. What was finished in the last moment before a kill is listed until it was handed out once more:
// nothing is called left over before.
func (h *harness) account(ctx context.Context) (*ledger.Report, error) {
	h.watch.Wait()
	end := time.Now().Add(handsOut)
	for {
		report, err := h.balance(ctx)
		if err != nil || len(report.Leftover) == 0 || h.o.plant != "" || time.Now().After(end) || !sleep(ctx, 5*time.Second) {
			return report, err
		}
	}
}

// balance asks the queue for the rest and adds all up.
func (h *harness) balance(ctx context.Context) (*ledger.Report, error) {
	rec := h.book.Records()
	rec.Grace = 10 * time.Second // on a machine with nothing to spare a worker was killed 5 s after the 250, and had recorded nothing
	rec.Released = h.o.plant == ""
	if err := h.insist(ctx, func(ctx context.Context) (err error) {
		rec.Queued, err = h.queued(ctx, rec.Messages)
		return err
	}); err != nil {
		return nil, fmt.Errorf("list the queue: %w", err)
	}
	if err := h.insist(ctx, func(ctx context.Context) (err error) {
		rec.Finishes, rec.Received, err = h.history(ctx)
		return err
	}); err != nil {
		return nil, fmt.Errorf("read the history: %w", err)
	}
	return ledger.Account(rec), nil
}

// queued is what the queue lists, by message.
func (h *harness) queued(ctx context.Context, messages []ledger.Message) (map[string][]string, error) {
	bounced := make(map[string][]string) // by message, what a notification may be about
	for _, m := range messages {
		for _, r := range m.Recipients {
			if a, ok := ledger.ParseAddress(r); ok && (a.Want == ledger.WantBounce || a.Want == ledger.WantReturn) {
				bounced[m.ID] = append(bounced[m.ID], r)
			}
		}
	}
	out := make(map[string][]string)
	for e, err := range h.roles.Ops().List(ctx, ops.Selection{}, 0) {
		if err != nil {
			return nil, err
		}
		id := string(e.Job.ID)
		if e.Job.Maker != "" { // a notification: its message's recipients wait with it
			id = string(e.Job.Maker)
			out[id] = append(out[id], bounced[id]...)
			continue
		}
		for _, r := range e.Job.Recipients {
			out[id] = append(out[id], r.Path.String())
		}
	}
	return out, nil
}

// history is what the queue has on record: deliveries, and the recipients of what was received.
func (h *harness) history(ctx context.Context) (finishes []ledger.Finish, received map[string]bool, err error) {
	received = make(map[string]bool)
	for e, err := range h.roles.Ops().Trace(ctx, ops.TraceFilter{Since: h.began}) {
		if err != nil {
			return nil, nil, err
		}
		switch e.Type {
		case queue.Delivered:
			finishes = append(finishes, ledger.Finish{ID: string(e.ID), Recipient: e.Recipient, At: e.Time})
		case queue.Reception:
			received[e.Recipient] = true
		}
	}
	return finishes, received, nil
}

// print shows the account and reports whether the run is a success.
func (h *harness) print(r *ledger.Report) bool {
	faults := make(map[ledger.FaultKind]int)
	for _, f := range h.book.Records().Faults {
		faults[f.Kind]++
	}
	stats := h.client.Stats()
	ok := !r.Failed() && len(h.crashed) == 0
	if !ok || h.o.plant != "" {
		examples("lost", r.Lost)
		examples("stuck", r.Stuck)
		examples("left over", r.Leftover)
		examples("misled", r.Misled)
		examples("damaged", r.Damaged)
		examples("unexplained", r.Unexplained)
		examples("late", r.Late)
		h.printCrashes()
	}
	if h.o.mode != modePower && h.o.plant == "" {
		fmt.Printf("steps: %s\n", h.steps)
	}
	fmt.Printf("faults: %v; client: refused %v, broken %d\n", faults, stats.Refused, stats.Broken)
	verdict := "ok"
	switch caught := len(r.Lost)+len(r.Stuck) > 0; {
	case h.o.plant != "" && caught:
		verdict, ok = "planted "+h.o.plant+" caught", true
	case h.o.plant != "":
		verdict, ok = "planted "+h.o.plant+" NOT CAUGHT", false
	case !ok:
		verdict = "FAILED"
	}
	fmt.Printf("%s: mode %s, seed %d: %s: %s\n", strings.ToUpper("chaos"), h.o.mode, h.o.seed, verdict, r)
	return ok
}

func examples(what string, list []string) {
	const most = 12
	for i, s := range list {
		if i == most {
			fmt.Printf("  %s: … %d more\n", what, len(list)-most)
			return
		}
		fmt.Printf("  %s: %s\n", what, s)
	}
}

// printCrashes shows the ends that nobody caused, with the last lines that the
// processes wrote.
func (h *harness) printCrashes() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.crashed {
		fmt.Printf("  crashed: %s at %s\n", e, e.At.Format("15:04:05.000"))
	}
	seen := make(map[string]bool)
	for _, e := range h.crashed {
		if seen[e.Name] {
			continue
		}
		seen[e.Name] = true
		text, err := os.ReadFile(filepath.Join(h.dir, e.Name+".log"))
		if err != nil {
			continue
		}
		lines := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
		for _, l := range lines[max(0, len(lines)-8):] {
			fmt.Printf("    %s: %s\n", e.Name, l)
		}
	}
}
