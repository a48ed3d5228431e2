// Package telemetry makes the logger and the metrics registry of a process; roles get both by their Options.
//
//	log := telemetry.NewLogger(os.Stderr, telemetry.LogOptions{Level: slog.LevelInfo})
//	reg := telemetry.NewRegistry("0.1.0")
//
// Lines are text on a terminal and JSON otherwise, so that people and collectors both get what they can read.
package telemetry

import (
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Format is how log lines look.
type Format int

// The formats.
const (
	FormatAuto Format = iota // text on a terminal, JSON otherwise
	FormatText
	FormatJSON
)

// LogOptions say what is written, and how.
type LogOptions struct {
	Level  slog.Level // least level; default info
	Format Format
}

// NewLogger makes a logger that writes to w.
func NewLogger(w io.Writer, o LogOptions) *slog.Logger {
	if !o.Text(w) {
		return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: o.Level}))
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: o.Level, ReplaceAttr: shortTime}))
}

// Text tells whether lines to w are text, for people.
func (o LogOptions) Text(w io.Writer) bool {
	return o.Format == FormatText || o.Format == FormatAuto && isTerminal(w)
}

// shortTime keeps the time of day: on a terminal the date is known.
func shortTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		a.Value = slog.StringValue(a.Value.Time().Format(time.TimeOnly + ".000"))
	}
	return a
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// NewRegistry makes a registry with the metrics of the process itself.
func NewRegistry(version string) *prometheus.Registry {
	r := prometheus.NewRegistry()
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "relay_build_info",
		Help:        "1, labelled with the version of the program.",
		ConstLabels: prometheus.Labels{"version": version},
	})
	info.Set(1)
	r.MustRegister(info, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}
