package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"
)

// Report is what a run came to.
type Report struct {
	Server   string `json:"server"`
	Size     int    `json:"size"`
	Sessions int    `json:"sessions"`

	Sent          int            `json:"sent"`     // messages begun
	Accepted      int            `json:"accepted"` // that got 250
	Errors        map[string]int `json:"errors,omitempty"`
	AcceptSeconds float64        `json:"accept_seconds"` // until the last session was closed

	AcceptedPerSecond float64 `json:"accepted_per_second"` // until the last 250
	Accept            Latency `json:"accept"`              // from MAIL to 250

	Sink               bool    `json:"sink"`                 // the fields below mean something
	Delivered          int     `json:"delivered"`            // arrived, copies not counted
	DeliveredPerSecond float64 `json:"delivered_per_second"` // from the first MAIL to the last arrival
	EndToEndSeconds    float64 `json:"end_to_end_seconds"`
	EndToEnd           Latency `json:"end_to_end"` // from MAIL to the final dot at the sink
	Signed             int     `json:"signed"`     // arrived with a DKIM-Signature field
	Missing            int     `json:"missing"`    // accepted and not arrived
	Duplicates         int     `json:"duplicates"` // further copies
	Strange            int     `json:"strange"`    // arrivals without a token of this run

	CPUPerMessage Millis  `json:"cpu_per_message_ms"` // of the given processes, per accepted message
	CPUSeconds    float64 `json:"cpu_seconds"`
	OwnCPUSeconds float64 `json:"own_cpu_seconds"` // of generator and sink
	PeakMemory    int64   `json:"peak_memory"`     // octets, proportional share of all given processes
	Processes     int     `json:"processes"`       // at the peak
}

// Latency is how long something took.
type Latency struct {
	P50 Millis `json:"p50_ms"`
	P99 Millis `json:"p99_ms"`
	Max Millis `json:"max_ms"`
}

// Millis is a time in milliseconds.
type Millis float64

func millis(d time.Duration) Millis { return Millis(d.Seconds() * 1000) }

// percentiles takes the nearest rank.
func percentiles(d []time.Duration) Latency {
	if len(d) == 0 {
		return Latency{}
	}
	slices.Sort(d)
	at := func(percent int) Millis {
		return millis(d[(len(d)*percent+99)/100-1])
	}
	return Latency{P50: at(50), P99: at(99), Max: millis(d[len(d)-1])}
}

func (r *Report) use(u usage) {
	r.CPUSeconds, r.OwnCPUSeconds = u.cpu.Seconds(), u.own.Seconds()
	r.PeakMemory, r.Processes = u.peakMemory, u.processes
	if r.Accepted > 0 {
		r.CPUPerMessage = millis(u.cpu) / Millis(r.Accepted)
	}
}

// WriteText writes the report for people.
func (r Report) WriteText(w io.Writer) error {
	lines := []string{
		fmt.Sprintf("%s, %d sessions, %d octets", r.Server, r.Sessions, r.Size),
		fmt.Sprintf("accepted    %d of %d, %.0f/s, from MAIL to 250: %s", r.Accepted, r.Sent, r.AcceptedPerSecond, r.Accept),
	}
	if r.Sink {
		lines = append(lines,
			fmt.Sprintf("delivered   %d, %.0f/s, from MAIL to arrival: %s", r.Delivered, r.DeliveredPerSecond, r.EndToEnd),
			fmt.Sprintf("            %d signed, %d missing, %d twice", r.Signed, r.Missing, r.Duplicates))
	}
	if r.CPUSeconds > 0 {
		lines = append(lines, fmt.Sprintf("processes   %d, %.2f ms CPU per message, %d MiB", r.Processes, float64(r.CPUPerMessage), r.PeakMemory>>20))
	}
	for _, text := range slices.Sorted(maps.Keys(r.Errors)) {
		lines = append(lines, fmt.Sprintf("refused     %d × %s", r.Errors[text], text))
	}
	for _, line := range lines {
		if _, err := fmt.Fprintln(w, line); err != nil {
			return fmt.Errorf("write report: %w", err)
		}
	}
	return nil
}

// WriteJSON writes the report for programs.
func (r Report) WriteJSON(w io.Writer) error {
	if err := json.NewEncoder(w).Encode(r); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

// String shows the three figures in a line.
func (l Latency) String() string {
	return fmt.Sprintf("p50 %.1f ms, p99 %.1f ms, max %.1f ms", float64(l.P50), float64(l.P99), float64(l.Max))
}
