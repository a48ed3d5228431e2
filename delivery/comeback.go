package delivery

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"postroad/delivery/bounce"
	"postroad/delivery/bounceclass"
	"postroad/delivery/report"
	"postroad/queue"
	"postroad/queue/address"
	"postroad/queue/failpoint"
	"postroad/queue/verp"
)

// Bounces say how mail of ours gets an address that bounces come back to, and what becomes of what comes back. All but Forward is required.
type Bounces struct {
	Ring    *verp.Ring // makes and reads the addresses
	Origins Origins
	Wanted  func(class string) bool // mail of clients of this class has such an address as its reverse-path; routes may ask for it too
	Forward bool                    // what a host reports of a mail is told to its sender
}

// Origins know who sent what; *queue.Queue does.
type Origins interface {
	// Origin says who sent a message, and to whom. queue.ErrNotFound: it is not known any more. queue.ErrTooManyFacts: it cannot be found.
	Origin(ctx context.Context, id queue.MessageID) (queue.Origin, error)
	// Spend takes n from a limit that is counted over the whole cluster.
	Spend(ctx context.Context, key string, n int, l queue.Limit) (queue.Spent, error)
}

var _ Origins = (*queue.Queue)(nil)

// reversePath is the one that hosts see: that of the mail, or an address of ours that names it and, when it goes to one recipient, him.
func (a *attempt) reversePath(rcpts []queue.Recipient) address.Path {
	b, job := a.w.o.Bounces, &a.job
	if b == nil || job.Kind != queue.KindMail || job.Incoming || job.ReversePath.IsNull() {
		return job.ReversePath
	}
	if !a.route.VERP && !b.Wanted(job.Class) {
		return job.ReversePath
	}
	var only address.Path
	if len(rcpts) == 1 {
		only = rcpts[0].Path
	}
	if path, ok := b.Ring.Path(job.ID, only, time.Now()); ok {
		return path
	}
	return job.ReversePath // better than no mail: bounces go to the sender then
}

// isComeback reports mail that is not relayed, but read here.
func (w *Worker) isComeback(job *queue.Job) bool {
	return job.Incoming && w.o.Bounces != nil && job.Domain == w.o.Bounces.Ring.Domain()
}

// noKeysDelay is how long mail that came back waits for keys to read its address. freshReport is how long after it came the events may not
// know of the delivery yet that it is about, which may be all that they will know of the mail.
const (
	noKeysDelay = time.Minute
	freshReport = time.Minute
)

var errTooSoon = errors.New("it came back before the events know of the mail")

// takeBack reads mail that came back, and settles it.
func (w *Worker) takeBack(ctx context.Context, job queue.Job, m mail) {
	c := &comeback{w: w, job: job, now: time.Now()}
	err := c.read(ctx, m)
	s := queue.Settlement{Facts: c.facts, Notify: c.notify}
	switch {
	case errors.Is(err, verp.ErrNoKeys):
		s = queue.Settlement{Remaining: job.Recipients, Delay: noKeysDelay, Reason: err.Error()}
	case errors.Is(err, errTooSoon):
		s = queue.Settlement{Remaining: job.Recipients, Delay: minDelay, Reason: err.Error()}
	case errors.Is(err, queue.ErrGone), err != nil && ctx.Err() != nil:
		return
	case err != nil:
		w.o.Logger.Warn("mail that came back cannot be read now, the job will be handed out again", "msg_id", job.ID, "error", err)
		return
	}
	failpoint.Hit("comeback.read")
	if err := m.Settle(ctx, s); err != nil {
		w.o.Logger.Warn("the queue did not confirm a settlement", "msg_id", job.ID, "part", job.Part, "error", err)
		return
	}
	failpoint.Hit("comeback.settled")
	for _, kind := range c.kinds {
		w.metrics.comebacks.WithLabelValues(kind).Inc()
	}
	if w.o.Suppressor != nil {
		for _, b := range c.bounces {
			w.o.Suppressor.HardBounced(b)
		}
	}
}

// comeback is one mail that came back, and what follows from it.
type comeback struct {
	w       *Worker
	job     queue.Job
	now     time.Time
	report  report.Report
	facts   []queue.Event
	notify  []queue.Notification
	bounces []HardBounce
	kinds   []string                         // for metrics
	origins map[queue.MessageID]queue.Origin // that were looked up
}

func (c *comeback) read(ctx context.Context, m mail) error {
	content, err := m.Open(ctx)
	if err != nil {
		return err
	}
	defer content.Close()
	if c.report, err = report.Parse(content); err != nil {
		return err
	}
	for _, rcpt := range c.job.Recipients {
		c.facts = append(c.facts, queue.Event{Type: queue.Delivered, Recipient: rcpt.Path.String(), Client: c.job.Client, Peer: "here",
			Code: 250, Text: string(c.report.Kind) + ": " + c.report.Subject, Size: m.Size()})
		token, err := c.token(rcpt.Path)
		switch {
		case errors.Is(err, verp.ErrNoKeys):
			return err
		case err != nil:
			c.kinds = append(c.kinds, "foreign")
			c.w.o.Logger.Info("what came back names no mail of ours", "msg_id", c.job.ID, "rcpt", rcpt.Path.String(), "kind", c.report.Kind)
		default:
			if err := c.about(ctx, token); err != nil {
				return err
			}
		}
	}
	return nil
}

// token finds out which mail this is about: by the address that it came to, or, where that is a mailbox for feedback, by the reverse-path
// that the report or the message in it has. Nothing else proves anything.
func (c *comeback) token(path address.Path) (verp.Token, error) {
	ring := c.w.o.Bounces.Ring
	token, err := ring.Read(path)
	if err == nil || errors.Is(err, verp.ErrNoKeys) {
		return token, err
	}
	if token, err := ring.Read(c.report.Complaint.MailFrom); err == nil {
		return token, nil
	}
	return ring.Read(c.report.ReturnPath())
}

// about takes note of what came back for one mail of ours.
func (c *comeback) about(ctx context.Context, token verp.Token) error {
	origin, err := c.origin(ctx, token.ID)
	switch {
	case errors.Is(err, queue.ErrNotFound) && c.now.Sub(c.job.Accepted) < freshReport:
		return errTooSoon
	case errors.Is(err, queue.ErrTooManyFacts):
		c.kinds = append(c.kinds, "unattributed")
		c.w.o.Logger.Warn("the sender of what came back cannot be found, he is not told and nobody is suppressed", "msg_id", token.ID, "error", err)
	case errors.Is(err, queue.ErrNotFound):
		c.kinds = append(c.kinds, "unattributed")
		c.w.o.Logger.Warn("nothing is known any more of the mail that came back, its sender is not told", "msg_id", token.ID)
	case err != nil:
		return err
	}
	if c.report.Kind == report.Feedback {
		c.complaint(token, origin)
		return nil
	}
	list := c.report.Recipients
	if c.report.Kind == report.Text && !c.report.IsReply { // which may quote any code
		list = c.words(token, list)
	}
	if len(list) == 0 {
		kind, what := "answer", "no report: "
		if c.report.IsReply {
			kind, what = "automatic", "automatic reply: "
		}
		c.kinds = append(c.kinds, kind)
		c.fact(queue.Event{Type: queue.OutOfBandReport, ID: token.ID, Text: what + c.report.Subject}, origin, named(token, origin))
		return nil
	}
	if token.HasRecipient() {
		list = worstOf(list) // whatever they are called where it was forwarded to
	}
	var senders []address.Path // one, but for mail that went to a list too
	told := make(map[address.Path][]bounce.Recipient)
	for _, r := range list {
		path, b := c.recipient(token, origin, r)
		sender := origin.SenderTo(path)
		if !wantsToHear(origin, path, b.Action) {
			continue
		}
		if told[sender] == nil {
			senders = append(senders, sender)
		}
		told[sender] = append(told[sender], b)
	}
	for _, sender := range senders {
		origin.Sender = sender
		if err := c.forward(ctx, token, origin, told[sender]); err != nil {
			return err
		}
	}
	return nil
}

// origin is looked up once for each mail, to however many addresses of it this came.
func (c *comeback) origin(ctx context.Context, id queue.MessageID) (queue.Origin, error) {
	if o, isKnown := c.origins[id]; isKnown {
		return o, nil
	}
	o, err := c.w.o.Bounces.Origins.Origin(ctx, id)
	if err == nil {
		if c.origins == nil {
			c.origins = make(map[queue.MessageID]queue.Origin)
		}
		c.origins[id] = o
	}
	return o, err
}

// worstOf is the one of several that matters most.
func worstOf(list []report.Recipient) []report.Recipient {
	for _, r := range list {
		if r.Action == "failed" {
			return []report.Recipient{r}
		}
	}
	return list[:1]
}

// wantsToHear says whether the sender asked for a notification of what became of a recipient (RFC 3461 §4.1): hosts that do not know NOTIFY
// report regardless of it, and all reports come here. One who cannot be found among the recipients (null) may be any of them, so all count.
func wantsToHear(origin queue.Origin, path address.Path, action bounce.Action) bool {
	what, byDefault := "SUCCESS", false
	switch action {
	case bounce.Failed:
		what, byDefault = "FAILURE", true
	case bounce.Delayed:
		what, byDefault = "DELAY", true
	}
	for _, r := range origin.Recipients {
		if (path.IsNull() || r.Path == path) && !wants(r, what, byDefault) {
			return false
		}
	}
	return true
}

// recipient takes note of what a host says of one, and returns whom of ours it is about (null: that is not known) and what to tell of him.
func (c *comeback) recipient(token verp.Token, origin queue.Origin, r report.Recipient) (address.Path, bounce.Recipient) {
	path := named(token, origin, r.Final, r.OriginalPath())
	class, kind, event := bounceclass.Class(""), "through", queue.OutOfBandReport
	switch r.Action {
	case "failed":
		code := replyCode(r.Diagnostic)
		class, kind, event = c.w.o.Classes.Class(bounceclass.Reply{Code: code, Enhanced: r.Status, Text: strings.TrimSpace(replyStart.ReplaceAllString(r.Diagnostic, ""))}), "failed", queue.OutOfBandBounce
		if !strings.HasPrefix(r.Status, "4") {
			c.bounced(token, origin, path, string(class), r.Diagnostic)
		}
	case "delayed":
		kind = "delayed"
	}
	c.kinds = append(c.kinds, kind)
	c.fact(queue.Event{Type: event, ID: token.ID, Code: replyCode(r.Diagnostic), Enhanced: r.Status, Text: strings.TrimSpace(r.Action + " " + r.Diagnostic), BounceClass: string(class)}, origin, path)
	shown := path
	if shown.IsNull() {
		shown = r.Final
	}
	remote := c.report.ReportingMTA
	if r.RemoteMTA != "" {
		remote = r.RemoteMTA
	}
	return path, bounce.Recipient{Path: shown, ORCPT: bounce.EncodeORCPT(r.Original), Action: bounce.Action(r.Action), Status: r.Status, RemoteMTA: remote, Diagnostic: r.Diagnostic}
}

var (
	replyStart = regexp.MustCompile(`^[245][0-9][0-9][ -]?(?:[245]\.[0-9]{1,3}\.[0-9]{1,3})? ?`)
	statusText = regexp.MustCompile(`\b([245])[0-9][0-9][ -]#?([245]\.[0-9]{1,3}\.[0-9]{1,3})\b|#[245]\.[0-9]{1,3}\.[0-9]{1,3}\b`)
)

// replyCode is the code that a diagnostic begins with, or 0.
func replyCode(diagnostic string) int {
	code := 0
	if replyStart.MatchString(diagnostic) {
		_, _ = fmt.Sscanf(diagnostic[:3], "%d", &code)
	}
	return code
}

// words makes a bounce of a text that is one: it names who failed in a field of its header, or it has an enhanced status code of a failure in it,
// beside a reply code or a #: dates, versions and addresses look like one alone. What the latter
// is about is known by its address alone.
func (c *comeback) words(token verp.Token, list []report.Recipient) []report.Recipient {
	found := statusText.FindString(c.report.Text)
	status := found[strings.LastIndexByte(found, ' ')+1:]
	status = strings.TrimLeft(status[strings.LastIndexByte(status, '-')+1:], "#")
	for i := range list { // named in a field
		list[i].Status, list[i].Diagnostic = status, c.report.Text
	}
	if len(list) > 0 || !token.HasRecipient() || status == "" || status[0] != '5' {
		return list
	}
	return []report.Recipient{{Action: "failed", Status: status, Diagnostic: c.report.Text}}
}

// named finds the recipient: the one that the token names, else the one of the candidates whom the mail went to, else the only one. The null
// path: it is not known.
func named(token verp.Token, origin queue.Origin, candidates ...address.Path) address.Path {
	for _, r := range origin.Recipients {
		if token.Names(r.Path) {
			return r.Path
		}
	}
	for _, p := range candidates {
		if token.Names(p) {
			return p
		}
		for _, o := range origin.Recipients {
			if !token.HasRecipient() && p == o.Path {
				return p
			}
		}
	}
	if len(origin.Recipients) == 1 && !origin.IsPartial && !token.HasRecipient() {
		return origin.Recipients[0].Path
	}
	return address.Path{}
}

// complaints are the types of feedback that say that a recipient does not want such mail (RFC 5965 §7.3). Others tell of viruses or of
// signatures, or that it was no spam.
var complaints = map[string]bool{"abuse": true, "fraud": true, "opt-out": true}

func (c *comeback) complaint(token verp.Token, origin queue.Origin) {
	f := c.report.Complaint
	path := named(token, origin, f.Recipients...)
	e := queue.Event{Type: queue.Feedback, ID: token.ID, Text: strings.TrimSpace(f.Type + " " + f.UserAgent + " " + f.SourceIP)}
	if complaints[f.Type] {
		e.BounceClass = ClassComplaint
		if origin.Class != "" { // else it would be about mail of every class
			c.bounced(token, origin, path, ClassComplaint, e.Text)
		}
	}
	c.kinds = append(c.kinds, "feedback")
	c.fact(e, origin, path)
}

// bounced is to suppress a recipient. Whoever got the mail has its address for bounces, so that it speaks for him alone: it names him or he was
// the only one, and the mail is known to have gone to him.
func (c *comeback) bounced(token verp.Token, origin queue.Origin, path address.Path, class, text string) {
	isOne := slices.ContainsFunc(origin.Recipients, func(r queue.Recipient) bool { return r.Path == path })
	if isOne && (token.HasRecipient() || len(origin.Recipients) == 1 && !origin.IsPartial) {
		c.bounces = append(c.bounces, HardBounce{Recipient: path, Class: class, MailClass: origin.Class, Client: origin.Client, ID: token.ID, Text: text})
	}
}

// fact records an event about the mail that came back, not about what brought it.
func (c *comeback) fact(e queue.Event, origin queue.Origin, rcpt address.Path) {
	e.Sender, e.Client, e.MessageID = origin.Sender.String(), origin.Client, origin.MessageID
	e.Recipient, e.Peer = rcpt.String(), c.report.ReportingMTA
	e.Text = bounce.Clean(e.Text, bounce.MaxText)
	c.facts = append(c.facts, e)
}
