package ledger

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Records are what was seen during a run.
type Records struct {
	Messages []Message
	Arrivals []Arrival
	Faults   []Fault
	Back     []Comeback

	// Queued is what the queue lists at the end: per message id the
	// recipients of its jobs, or none for the whole message.
	Queued map[string][]string
	// Finishes are the facts that say that a delivery was recorded: once one
	// is there, nothing may bring the mail out again.
	Finishes []Finish
	// Received are the recipients of whose mail the history has the reception.
	Received map[string]bool
	// Released says that the recipients that wait were let through at the end.
	Released bool
	// Grace is how long a delivery may take from the peer's 250 to its record
	// when no Finish is known. Default 2 s.
	Grace time.Duration
}

// Finish is the record of a delivery.
type Finish struct {
	ID        string
	Recipient string
	At        time.Time
}

// Report is the account of a run. Numbers are recipients unless they say
// otherwise.
type Report struct {
	Accepted    int // messages
	Recipients  int
	Unconfirmed int // messages that arrived although no 250 was seen: rightly so

	Delivered int
	Bounced   int
	Waiting   int // still queued, as wanted
	Cancelled int // gone, as an operator wished
	Told      int // of those delivered, senders were told that they had failed after all
	Forgotten int // the same, but the history of the mail went with the processes that had it, so nobody was told

	Lost     []string // neither arrived nor queued
	Stuck    []string // still queued after the drain
	Leftover []string // queued although everything arrived: message ids
	Misled   []string // a notification for a recipient that was to be delivered
	Damaged  []string // arrived with the wrong content

	InHand      int            // jobs that killed processes had in hand, as the receiver saw them
	Duplicates  map[string]int // by cause
	Unexplained []string       // duplicates without a fault near the first delivery
	Late        []string       // arrived again more than a second after a recorded finish, see cutOff
}

// The causes of duplicates.
const (
	CauseWorker = "worker killed with the job in hand"
	CauseStore  = "queue away while the job was in hand"
	CauseNone   = "unexplained"
)

const (
	lateAfter = time.Second
	// unwritten is how long a server of one copy may take to write down what was finished: a tenth of a second, and as long again
	// on a busy machine.
	unwritten = 200 * time.Millisecond
)

// Failed reports whether anything is there that must not be.
func (r *Report) Failed() bool {
	return len(r.Lost)+len(r.Stuck)+len(r.Leftover)+len(r.Misled)+len(r.Damaged)+len(r.Late)+len(r.Unexplained) > 0 ||
		r.DuplicateCount() > r.InHand
}

// DuplicateCount is the sum over all causes.
func (r *Report) DuplicateCount() int {
	n := 0
	for _, c := range r.Duplicates {
		n += c
	}
	return n
}

// String is the account in one line.
func (r *Report) String() string {
	return fmt.Sprintf("accepted %d (recipients %d): delivered %d, bounced %d, cancelled %d, told %d, forgotten %d, waiting %d, LOST %d, STUCK %d, leftover %d, misled %d, damaged %d; "+
		"duplicates %d of %d in hand (worker %d, queue %d, unexplained %d), late %d; unconfirmed %d",
		r.Accepted, r.Recipients, r.Delivered, r.Bounced, r.Cancelled, r.Told, r.Forgotten, r.Waiting, len(r.Lost), len(r.Stuck), len(r.Leftover), len(r.Misled), len(r.Damaged),
		r.DuplicateCount(), r.InHand, r.Duplicates[CauseWorker], r.Duplicates[CauseStore], r.Duplicates[CauseNone], len(r.Late), r.Unconfirmed)
}

// Account compares what was accepted with what became of it.
func Account(rec Records) *Report {
	if rec.Grace == 0 {
		rec.Grace = 2 * time.Second
	}
	a := &account{Records: rec, report: &Report{Duplicates: make(map[string]int)}}
	a.index()
	for _, m := range rec.Messages {
		a.message(m)
	}
	a.comebacks()
	a.repeats()
	a.inHand()
	return a.report
}

type account struct {
	Records
	report   *Report
	ids      map[string]string    // token → id
	accepted map[string]time.Time // by token
	arrived  map[string][]Arrival
	reported map[string][]Arrival
	finished map[string]map[string][]time.Time // id → recipient
}

func (a *account) index() {
	a.ids = make(map[string]string, len(a.Messages))
	a.accepted = make(map[string]time.Time, len(a.Messages))
	for _, m := range a.Messages {
		a.ids[m.Token] = m.ID
		a.accepted[m.Token] = m.Accepted
	}
	a.arrived, a.reported = make(map[string][]Arrival), make(map[string][]Arrival)
	unconfirmed := make(map[string]bool)
	for _, v := range a.Arrivals {
		into := a.arrived
		if v.Report {
			into = a.reported
		}
		into[v.Recipient] = append(into[v.Recipient], v)
		if a.ids[v.Token] == "" {
			unconfirmed[v.Token] = true
		}
		if v.Damage != "" {
			a.report.Damaged = append(a.report.Damaged, v.Recipient+": "+v.Damage)
		}
	}
	a.report.Unconfirmed = len(unconfirmed)
	a.finished = make(map[string]map[string][]time.Time)
	for _, f := range a.Finishes {
		if a.finished[f.ID] == nil {
			a.finished[f.ID] = make(map[string][]time.Time)
		}
		a.finished[f.ID][f.Recipient] = append(a.finished[f.ID][f.Recipient], f.At)
	}
}

// message accounts for one accepted message.
func (a *account) message(m Message) {
	r := a.report
	r.Accepted++
	settled := true
	for _, rcpt := range m.Recipients {
		r.Recipients++
		addr, ok := ParseAddress(rcpt)
		if !ok {
			r.Lost = append(r.Lost, m.ID+" "+rcpt+": not an address of this run")
			continue
		}
		where := m.ID + " " + rcpt
		queued := a.queued(m.ID, rcpt)
		bounced := len(a.reported[rcpt]) > 0
		if bounced && addr.Want != WantBounce && addr.Want != WantReturn && addr.Want != WantBack {
			r.Misled = append(r.Misled, where)
		}
		switch {
		case addr.Want == WantCancel && a.Released && !queued && len(a.arrived[rcpt]) == 0:
			r.Cancelled++
		case len(a.arrived[rcpt]) > 0:
			r.Delivered++
		case bounced:
			r.Bounced++
		case queued && addr.waits() && !a.Released:
			r.Waiting++
			settled = false
		case queued:
			r.Stuck = append(r.Stuck, where)
			settled = false
		default:
			r.Lost = append(r.Lost, where)
			settled = false
		}
	}
	if _, there := a.Queued[m.ID]; there && settled {
		r.Leftover = append(r.Leftover, m.ID)
	}
}

// comebacks accounts for the reports that were taken: each is told once.
func (a *account) comebacks() {
	for _, c := range a.Back {
		list := a.reported[c.Recipient]
		switch {
		case len(list) == 0 && a.historyWent(c.Recipient):
			a.report.Forgotten++
			continue
		case len(list) == 0:
			known := "the reception is on record"
			if !a.Received[c.Recipient] {
				known = "the reception is not on record"
			}
			a.report.Lost = append(a.report.Lost, c.ID+" "+c.Recipient+": its report of "+c.At.Format("15:04:05.000")+" was told to nobody; "+known)
			continue
		case c.Again: // the receiver's own doing
			a.reported[c.Recipient] = list[:1]
		}
		a.report.Told++
	}
}

// historyWent says that neither the reception of a recipient's mail nor its delivery is on record, because the ingress and the worker were both
// killed right after them: facts are published a moment later, and what a process has not published ends with it.
func (a *account) historyWent(rcpt string) bool {
	addr, ok := ParseAddress(rcpt)
	if !ok || a.Received[rcpt] {
		return false
	}
	killed := func(process string, after time.Time) bool {
		return slices.ContainsFunc(a.Faults, func(f Fault) bool {
			return strings.HasPrefix(f.Process, process) && !f.At.Before(after) && f.At.Sub(after) <= a.Grace
		})
	}
	for _, v := range a.arrived[rcpt] {
		_, isRecorded := a.finish(v, v.At.Add(time.Hour))
		accepted := a.accepted[addr.Token]
		if accepted.IsZero() || accepted.After(v.At) { // no 250, or it came late: the reception was noted before the delivery began
			accepted = v.Begin.Add(-a.Grace)
		}
		if isRecorded || !killed(v.Worker, v.At) || !killed("ingress-", accepted) {
			return false
		}
	}
	return true
}

func (a *account) queued(id, rcpt string) bool {
	recipients, there := a.Queued[id]
	return there && (len(recipients) == 0 || slices.ContainsFunc(recipients, func(s string) bool { return strings.EqualFold(s, rcpt) }))
}

// repeats finds everything that arrived more than once.
func (a *account) repeats() {
	for _, by := range []map[string][]Arrival{a.arrived, a.reported} {
		for _, list := range by {
			slices.SortFunc(list, func(x, y Arrival) int { return x.At.Compare(y.At) })
			for i := 1; i < len(list); i++ {
				a.repeat(list[i-1], list[i])
			}
		}
	}
	slices.Sort(a.report.Unexplained)
	slices.Sort(a.report.Late)
}

func (a *account) repeat(first, again Arrival) {
	r := a.report
	what := fmt.Sprintf("%s %s: %s by %s, again %s later by %s", a.ids[first.Token], first.Recipient,
		first.At.Format("15:04:05.000"), first.Worker, again.At.Sub(first.At).Round(time.Millisecond), again.Worker)
	finish, known := a.finish(first, again.Begin)
	if known && again.Begin.Sub(finish) > lateAfter && !a.cutOff(finish, again.Begin) && !a.forgot(first.Worker, finish, again.Begin) {
		r.Late = append(r.Late, what+", finish recorded at "+finish.Format("15:04:05.000")+a.next(finish))
	}
	cause := a.cause(first, again)
	r.Duplicates[cause]++
	if cause == CauseNone {
		r.Unexplained = append(r.Unexplained, what)
	}
}

// next tells of the first fault of the queue after a moment.
func (a *account) next(at time.Time) string {
	var found *Fault
	for i, f := range a.Faults {
		if f.Store && !f.At.Before(at) && (found == nil || f.At.Before(found.At)) {
			found = &a.Faults[i]
		}
	}
	if found == nil {
		return ""
	}
	return fmt.Sprintf(", %s of %s %s after that", found.Kind, found.Process, found.At.Sub(at).Round(time.Millisecond))
}

// cutOff says that the power went within a second of a finish: one copy of the queue does not sync removals, so what was
// finished just then comes back with its job, and is handed out again when the acknowledgement is missed.
func (a *account) cutOff(finish, again time.Time) bool {
	return slices.ContainsFunc(a.Faults, func(f Fault) bool {
		return f.Kind == FaultPower && f.At.Before(again) && f.At.Sub(finish).Abs() <= lateAfter
	})
}

// forgot says that the queue was killed before it had written down a finish, and that the worker, which would have settled it again
// when the queue was back, was killed too.
func (a *account) forgot(worker string, finish, again time.Time) bool {
	return slices.ContainsFunc(a.Faults, func(f Fault) bool {
		return f.Store && !f.At.Before(finish) && f.At.Sub(finish) <= unwritten && slices.ContainsFunc(a.Faults, func(w Fault) bool {
			return w.Process == worker && !w.At.Before(f.At) && w.At.Before(again)
		})
	})
}

// finish is the first record of this delivery that was made before the time
// given: a repeat makes a record of its own.
func (a *account) finish(v Arrival, before time.Time) (time.Time, bool) {
	if v.Report {
		return time.Time{}, false // the record is under the notification's own id
	}
	var found time.Time
	for _, t := range a.finished[a.ids[v.Token]][v.Recipient] {
		if !t.Before(v.At) && t.Before(before) && (found.IsZero() || t.Before(found)) {
			found = t
		}
	}
	return found, !found.IsZero()
}

// cause says which fault explains that v was delivered again: one that
// happened to its worker, or to the queue, while the job was in hand.
func (a *account) cause(v, again Arrival) string {
	end, known := a.finish(v, again.Begin)
	if !known {
		end = v.At.Add(a.Grace)
	}
	// A 250 that comes after the delivery: ingress had the message in hand all the while, and stored it again.
	end = later(end, a.accepted[v.Token])
	cause, until := CauseNone, end
	for _, f := range a.Faults {
		if held(v, end, f) && f.Process != v.Worker {
			cause = CauseStore
			until = later(until, f.Until.Add(a.Grace))
		}
	}
	for _, f := range a.Faults { // a worker may die while it waits for the queue
		if f.Process == v.Worker && held(v, until, f) {
			return CauseWorker
		}
	}
	if known && a.forgot(v.Worker, end, again.Begin) {
		a.report.InHand++ // of the worker, until it is written down
		return CauseWorker
	}
	return cause
}

func later(x, y time.Time) time.Time {
	if x.After(y) {
		return x
	}
	return y
}

// held reports whether v was in hand, from its beginning until end, when f
// happened.
func held(v Arrival, end time.Time, f Fault) bool {
	if !f.Store && f.Process != v.Worker {
		return false
	}
	until := f.Until
	if until.IsZero() {
		until = f.At
	}
	if f.Kind == FaultPower {
		end = end.Add(lateAfter) // see cutOff
	}
	return !until.Before(v.Begin) && !f.At.After(end)
}

// inHand counts the jobs that the faults caught: the dialogues that were open,
// what had been answered but not recorded, and what began while a server was
// stopped or cut off.
func (a *account) inHand() {
	ends := make([]time.Time, len(a.Arrivals))
	for i, v := range a.Arrivals {
		end, known := a.finish(v, v.At.Add(a.Grace))
		if !known {
			end = v.At.Add(a.Grace)
		}
		ends[i] = end
	}
	for _, f := range a.Faults {
		a.report.InHand += f.Open
		for i, v := range a.Arrivals {
			open := !v.Begin.After(f.At) && v.At.After(f.At) // counted as such
			during := v.Begin.After(f.At)
			if !open && held(v, ends[i], f) && (!during || f.Kind == FaultStop || f.Kind == FaultCut) {
				a.report.InHand++
			}
		}
	}
}
