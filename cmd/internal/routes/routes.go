// Package routes keeps the routes of the configuration in force, and with them those of a file that may change at any
// time, as may the files of authorities that they name.
//
//	live, err := routes.New(routes.Options{Delivery: &c.Delivery, Logger: log})
//	live.Start()
//	r := live.Lookup(route.Query{Domain: "example.com"})
//	err = live.Stop(ctx)
//
// A change of the file is in force after two looks that found the same content, so that it is not taken while it is
// being written. One with a fault changes nothing: the old routes stay, the log says once why, and so do Conditions.
package routes

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"postroad/cmd/internal/config"
	"postroad/delivery/route"
	"postroad/queue"
)

// Options say what to follow.
type Options struct {
	Delivery *config.Delivery // checked; required
	Interval time.Duration    // between two looks at the file; default 2 s
	Logger   *slog.Logger     // default: discards
}

const defaultInterval = 2 * time.Second

// Live is the routes in force.
type Live struct {
	delivery *config.Delivery
	interval time.Duration
	log      *slog.Logger

	table   atomic.Pointer[inForce]
	trouble atomic.Pointer[queue.Condition] // nil: the file is what is in force

	// Of the goroutine that looks.
	stamps  []stamp // of the last look, for each of files
	isCalm  bool    // they were old enough then for a stamp to tell of any change
	last    sum     // found by the last look
	refused sum     // has faults, which the log has told

	start  sync.Once
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

type sum [sha256.Size]byte

type inForce struct {
	table route.Table
	sum   sum
	since time.Time
}

// stamp is what changes when a file does, mostly.
type stamp struct {
	isThere bool
	size    int64
	changed time.Time
}

// New reads the routes for the first time: there must be no fault in them.
func New(o Options) (*Live, error) {
	l := &Live{delivery: o.Delivery, interval: o.Interval, log: o.Logger}
	if l.interval <= 0 {
		l.interval = defaultInterval
	}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	text, err := l.read()
	if err == nil {
		err = l.load(text, sum{})
	}
	if err != nil {
		return nil, err
	}
	now := l.table.Load()
	l.last = l.sumOf(text, nil, now.table.Files())
	l.table.Store(&inForce{now.table, l.last, now.since})
	l.ctx, l.cancel = context.WithCancel(context.Background())
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

// Stop ends the looking; the routes stay in force.
func (l *Live) Stop(ctx context.Context) error {
	l.cancel()
	done := make(chan struct{})
	go func() {
		l.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop following the file of routes: %w", ctx.Err())
	}
}

// Lookup finds the route of mail among those in force.
func (l *Live) Lookup(q route.Query) route.Route { return l.table.Load().table.Lookup(q) }

// Fact tells other processes which routes are in force, and since when: their number, and a word that differs when the
// content of the file does.
func (l *Live) Fact() string {
	now := l.table.Load()
	word := ""
	if l.delivery.RoutesFile != "" || len(now.table.Files()) > 0 {
		word = fmt.Sprintf(", file sha256:%x", now.sum[:6])
	}
	return fmt.Sprintf("%d%s since %s", now.table.Len(), word, now.since.UTC().Format(time.RFC3339))
}

// Conditions are what is wrong with the file at the moment.
func (l *Live) Conditions() []queue.Condition {
	if c := l.trouble.Load(); c != nil {
		return []queue.Condition{*c}
	}
	return nil
}

func (l *Live) read() ([]byte, error) {
	if l.delivery.RoutesFile == "" {
		return nil, nil
	}
	return config.ReadRoutes(l.delivery.RoutesFile)
}

// settleTime is how much older than a look the last change of a file must be for its size and time to tell of any
// further one.
const settleTime = 2 * time.Second

// look compares the files with those in force.
func (l *Live) look() {
	current := l.table.Load()
	files := current.table.Files()
	stamps, newest := make([]stamp, 0, 1+len(files)), time.Time{}
	for _, name := range append([]string{l.delivery.RoutesFile}, files...) {
		st := stampOf(name)
		if stamps = append(stamps, st); st.changed.After(newest) {
			newest = st.changed
		}
	}
	if slices.Equal(stamps, l.stamps) && l.isCalm && (l.last == current.sum || l.last == l.refused) {
		return
	}
	l.isCalm, l.stamps = time.Since(newest) > settleTime, stamps
	text, err := l.read()
	found := l.sumOf(text, err, files)
	isSettled := found == l.last
	l.last = found
	switch {
	case found == current.sum:
		if l.refused != (sum{}) {
			l.refused = sum{}
			l.trouble.Store(nil)
			l.log.Info("the files of routes are again those in force", "file", l.delivery.RoutesFile)
		}
		return
	case !isSettled || found == l.refused:
		return
	}
	if err == nil {
		err = l.load(text, found)
	}
	if err != nil {
		l.refuse(found, err)
		return
	}
	l.refused = sum{}
	if now := l.table.Load(); !slices.Equal(now.table.Files(), files) { // others are looked at from now on
		l.last = l.sumOf(text, nil, now.table.Files())
		l.table.Store(&inForce{now.table, l.last, now.since})
	}
}

// load puts contents in force, or says what is wrong with them.
func (l *Live) load(text []byte, found sum) error {
	table, err := l.delivery.ParseRoutes(text)
	if err != nil {
		return err
	}
	l.table.Store(&inForce{table, found, time.Now()})
	l.trouble.Store(nil)
	if len(table.Files()) > 0 || l.delivery.RoutesFile != "" {
		l.log.Info("routes in force", "file", l.delivery.RoutesFile, "routes", table.Len())
	}
	return nil
}

// refuse says once for each content what is wrong with it.
func (l *Live) refuse(found sum, err error) {
	l.refused = found
	faults, is := errors.AsType[config.Errors](err)
	if !is || len(faults) == 0 {
		faults = config.Errors{{Text: err.Error()}}
	}
	first := faults[0]
	l.trouble.Store(&queue.Condition{Part: "routes", Since: time.Now(), Do: "put the file right: it is taken within seconds",
		Text: fmt.Sprintf("changed routes are not taken, the old ones stay in force: %s (of %d faults)", first.Error(), len(faults))})
	l.log.Error("changed routes are not taken, the old ones stay in force", "file", l.delivery.RoutesFile, "line", first.Line,
		"setting", first.Setting, "text", first.Text, "faults", len(faults))
}

func stampOf(name string) stamp {
	info, err := os.Stat(name)
	if err != nil {
		return stamp{}
	}
	return stamp{true, info.Size(), info.ModTime()}
}

// sumOf tells contents apart: that of the file of routes, or why it cannot be read, and those of the files that routes were
// made with.
func (l *Live) sumOf(text []byte, err error, files []string) sum {
	if err != nil {
		text = []byte("\x00" + err.Error())
	}
	all := sha256.Sum256(text)
	for _, name := range files {
		content, err := config.ReadRoutes(name)
		if err != nil {
			content = []byte("\x00" + err.Error())
		}
		one := sha256.Sum256(content)
		all = sha256.Sum256(append(all[:], one[:]...))
	}
	return all
}
