package rewrite

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postroad/queue"
	"postroad/queue/address"
)

// LiveOptions say how to follow files.
type LiveOptions struct {
	Files      Files
	Interval   time.Duration         // between two looks at the files; default 2 s
	Logger     *slog.Logger          // default: discards
	Registerer prometheus.Registerer // default: metrics are kept but not registered
}

const defaultInterval = 2 * time.Second

// Live is the rules of files that may change at any time. A change is in force
// after two looks that found the same content, so that a file is not taken while
// it is being written. One with a fault changes nothing: the old rules stay.
type Live struct {
	files    Files
	interval time.Duration
	log      *slog.Logger
	metrics  *metrics

	rules   atomic.Pointer[Rules]
	trouble atomic.Pointer[queue.Condition] // nil: the files are those in force

	// Of the goroutine that looks.
	stamps  [2]stamp // of the last look
	isCalm  bool     // the files were old enough then for a stamp to tell of any change
	current sum      // in force
	last    sum      // found by the last look
	refused sum      // has faults, which the log has told

	start sync.Once
	stop  context.CancelFunc
	ctx   context.Context
	wg    sync.WaitGroup
}

type sum [sha256.Size]byte

// stamp is what changes when a file does, mostly.
type stamp struct {
	isThere bool
	size    int64
	changed time.Time
}

// NewLive reads the files for the first time: there must be no fault in them.
func NewLive(o LiveOptions) (*Live, error) {
	l := &Live{files: o.Files, interval: o.Interval, log: o.Logger, metrics: newMetrics()}
	if l.interval <= 0 {
		l.interval = defaultInterval
	}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	t := readTexts(l.files)
	if err := l.load(t); err != nil {
		return nil, err
	}
	l.current = t.sum()
	l.last = l.current
	if err := l.metrics.register(o.Registerer); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	l.ctx, l.stop = context.WithCancel(context.Background())
	return l, nil
}

// Start begins to look at the files.
func (l *Live) Start() {
	l.start.Do(func() {
		l.wg.Go(func() {
			ticker := time.NewTicker(l.interval)
			defer ticker.Stop()
			for {
				select {
				case <-l.ctx.Done():
					return
				case <-ticker.C:
					l.look()
				}
			}
		})
	})
}

// Stop ends the looking; the rules stay in force.
func (l *Live) Stop(ctx context.Context) error {
	l.stop()
	done := make(chan struct{})
	go func() {
		l.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop following the files of rules: %w", ctx.Err())
	}
}

// Rules are those in force.
func (l *Live) Rules() *Rules { return l.rules.Load() }

// Sender is Rules.Sender of the rules in force.
func (l *Live) Sender(p address.Path) address.Path { return l.Rules().Sender(p, nil) }

// Expand is Rules.Expand of the rules in force.
func (l *Live) Expand(r queue.Recipient) ([]queue.Recipient, error) { return l.Rules().Expand(r, nil) }

// Header is Rules.Header of the rules in force; addresses are completed.
func (l *Live) Header(fields []byte) []byte { return l.Rules().Header(fields, true, nil) }

// settleTime is how much older than a look the last change of a file must be
// for its size and time to tell of any further one.
const settleTime = 2 * time.Second

// look compares the files with those in force.
func (l *Live) look() {
	stamps := [2]stamp{stampOf(l.files.Rules), stampOf(l.files.Aliases)}
	if stamps == l.stamps && l.isCalm && (l.last == l.current || l.last == l.refused) {
		return
	}
	now := time.Now()
	l.isCalm = now.Sub(stamps[0].changed) > settleTime && now.Sub(stamps[1].changed) > settleTime
	l.stamps = stamps
	t := readTexts(l.files)
	found := t.sum()
	isSettled := found == l.last
	l.last = found
	switch {
	case found == l.current:
		if l.refused != (sum{}) {
			l.refused = sum{}
			l.trouble.Store(nil)
			l.metrics.fileErrors.Set(0)
			l.log.Info("the files of rules are again those in force", "rules", l.files.Rules, "aliases", l.files.Aliases)
		}
		return
	case !isSettled || found == l.refused:
		return
	}
	if err := l.load(t); err != nil {
		l.refuse(found, err)
		return
	}
	l.current, l.refused = found, sum{}
}

// load puts contents in force, or says what is wrong with them.
func (l *Live) load(t texts) error {
	rules, err := compile(l.files, t)
	if err != nil {
		return err
	}
	rules.metrics, rules.log = l.metrics, l.log
	l.rules.Store(rules)
	l.trouble.Store(nil)
	l.metrics.fileErrors.Set(0)
	l.metrics.loads.WithLabelValues("loaded").Inc()
	doubts := rules.Lint()
	l.log.Info("rules for addresses in force", "rules", l.files.Rules, "aliases", l.files.Aliases, "canonical", len(rules.canonical),
		"names", rules.aliases.count(), "doubts", len(doubts))
	const most = 20
	for i, doubt := range doubts {
		if i == most {
			break // postroad explain tells the rest
		}
		l.log.Warn("a rule for addresses may not do what is meant", "file", doubt.File, "line", doubt.Line, "text", doubt.Text)
	}
	return nil
}

// refuse says once for each content what is wrong with it.
func (l *Live) refuse(found sum, err error) {
	l.refused = found
	l.metrics.loads.WithLabelValues("refused").Inc()
	faults, ok := errors.AsType[Faults](err)
	if !ok {
		faults = Faults{{Text: err.Error()}}
	}
	l.metrics.fileErrors.Set(float64(len(faults)))
	l.trouble.Store(&queue.Condition{Part: "rules", Since: time.Now(), Do: "put the file right: it is taken within seconds",
		Text: fmt.Sprintf("changed rules for addresses are not taken, the old ones stay in force: %s (of %d faults)", faults[0].Error(), len(faults))})
	const most = 20
	for i, f := range faults {
		if i == most {
			break
		}
		l.log.Error("changed rules are not taken, the old ones stay in force", "file", f.File, "line", f.Line, "text", f.Text, "faults", len(faults))
	}
}

func stampOf(name string) stamp {
	if name == "" {
		return stamp{}
	}
	info, err := os.Stat(name)
	if err != nil {
		return stamp{}
	}
	return stamp{true, info.Size(), info.ModTime()}
}

// sum tells contents apart.
func (t *texts) sum() sum {
	h := sha256.New()
	mix(h, t.rules, t.rulesErr)
	mix(h, t.aliases, t.aliasesErr)
	return sum(h.Sum(nil))
}

func mix(h hash.Hash, text []byte, err error) {
	if err != nil {
		text = []byte("\x00" + err.Error())
	}
	var size [8]byte
	binary.BigEndian.PutUint64(size[:], uint64(len(text)))
	_, _ = h.Write(size[:]) // a hash cannot fail
	_, _ = h.Write(text)
}

// Conditions are what is wrong with the files at the moment.
func (l *Live) Conditions() []queue.Condition {
	if c := l.trouble.Load(); c != nil {
		return []queue.Condition{*c}
	}
	return nil
}
