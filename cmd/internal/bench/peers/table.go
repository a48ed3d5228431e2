package main

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"fmt"
	"io"
	"runtime"
	"slices"
	"syscall"
	"text/tabwriter"
	"time"

	"postroad/cmd/internal/bench"
)

// result is all measurements of one relay.
type result struct {
	contender
	flat, quiet []bench.Report
}

func median(reports []bench.Report, value func(bench.Report) float64) float64 {
	if len(reports) == 0 {
		return 0
	}
	var v []float64
	for _, r := range reports {
		v = append(v, value(r))
	}
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// column is one figure of the table.
type column struct {
	title  string
	quiet  bool // of the light load
	sink   bool // needs deliveries
	digits int
	value  func(bench.Report) float64
}

var columns = []column{
	{"accepted/s", false, false, 0, func(r bench.Report) float64 { return r.AcceptedPerSecond }},
	{"p50", false, false, 1, func(r bench.Report) float64 { return float64(r.Accept.P50) }},
	{"p99", false, false, 1, func(r bench.Report) float64 { return float64(r.Accept.P99) }},
	{"end to end/s", false, true, 0, func(r bench.Report) float64 { return r.DeliveredPerSecond }},
	{"p50", false, true, 0, func(r bench.Report) float64 { return float64(r.EndToEnd.P50) }},
	{"p99", false, true, 0, func(r bench.Report) float64 { return float64(r.EndToEnd.P99) }},
	{"CPU ms", false, false, 2, func(r bench.Report) float64 { return float64(r.CPUPerMessage) }},
	{"MiB", false, false, 0, func(r bench.Report) float64 { return float64(r.PeakMemory) / (1 << 20) }},
	{"quiet: accept p50", true, false, 1, func(r bench.Report) float64 { return float64(r.Accept.P50) }},
	{"p99", true, false, 1, func(r bench.Report) float64 { return float64(r.Accept.P99) }},
	{"to the sink p50", true, true, 1, func(r bench.Report) float64 { return float64(r.EndToEnd.P50) }},
	{"p99", true, true, 1, func(r bench.Report) float64 { return float64(r.EndToEnd.P99) }},
}

func printTable(w io.Writer, o options, m *machine, results []*result) error {
	sign, err := signatureCost()
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "%v\n%d messages of %d octets, %d sessions, medians of %d rounds; times in ms from MAIL; an RSA-2048 signature costs Go %.2f ms of CPU here\n",
		m, o.messages, o.size, o.sessions, o.rounds, sign.Seconds()*1000)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(t, "relay\t")
	for _, c := range columns {
		fmt.Fprintf(t, "%s\t", c.title)
	}
	fmt.Fprintln(t)
	for _, r := range results {
		fmt.Fprintf(t, "%s\t", r.name)
		for _, c := range columns {
			reports := r.flat
			if c.quiet {
				reports = r.quiet
			}
			if c.sink && r.acceptOnly {
				fmt.Fprint(t, "-\t")
				continue
			}
			fmt.Fprintf(t, "%.*f\t", c.digits, median(reports, c.value))
		}
		fmt.Fprintln(t)
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print table: %w", err)
	}
	printRatios(w, results)
	return nil
}

// printRatios compares what does the same work.
func printRatios(w io.Writer, results []*result) {
	find := func(name string) *result {
		i := slices.IndexFunc(results, func(r *result) bool { return r.name == name })
		if i < 0 {
			return nil
		}
		return results[i]
	}
	accepted := func(r bench.Report) float64 { return r.AcceptedPerSecond }
	delivered := func(r bench.Report) float64 { return r.DeliveredPerSecond }
	cpu := func(r bench.Report) float64 { return float64(r.CPUPerMessage) }
	for _, c := range []struct {
		what       string
		ours, peer string
		value      func(bench.Report) float64
	}{
		{"accepted/s, nothing delivered", "postroad accepts", "postfix accepts", accepted},
		{"accepted/s, while delivering", "postroad unsigned", "postfix", accepted},
		{"end to end/s, unsigned", "postroad unsigned", "postfix", delivered},
		{"end to end/s, signed", "postroad signed", "postfix opendkim", delivered},
		{"CPU per message, unsigned", "postroad unsigned", "postfix", cpu},
		{"CPU per message, signed", "postroad signed", "postfix opendkim", cpu},
	} {
		ours, peer := find(c.ours), find(c.peer)
		if ours == nil || peer == nil {
			continue
		}
		a, b := median(ours.flat, c.value), median(peer.flat, c.value)
		fmt.Fprintf(w, "%s: %s / %s = %.2f\n", c.what, c.ours, c.peer, a/b)
	}
}

// signatureCost is what no relay that signs in Go can do without: CPU time, so that other load does not count.
func signatureCost() (time.Duration, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return 0, fmt.Errorf("make key: %w", err)
	}
	sum := sha256.Sum256(nil)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const n = 200
	began, err := threadCPU()
	if err != nil {
		return 0, err
	}
	for range n {
		if _, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, sum[:]); err != nil {
			return 0, fmt.Errorf("sign: %w", err)
		}
	}
	ended, err := threadCPU()
	return (ended - began) / n, err
}

func threadCPU() (time.Duration, error) {
	var r syscall.Rusage
	if err := syscall.Getrusage(rusageThread, &r); err != nil {
		return 0, fmt.Errorf("read CPU time: %w", err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano()), nil
}

// rusageThread is RUSAGE_THREAD of getrusage(2).
const rusageThread = 1
