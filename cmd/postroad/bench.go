package main

import (
	"fmt"
	"time"

	"postroad/cmd/internal/bench"
	"postroad/cmd/internal/config"
)

type benchCmd struct {
	Address     string        `arg:"" help:"SMTP server to put load on, host:port."`
	Sink        string        `placeholder:"ADDRESS" help:"Listen here for what the server relays: gives end-to-end times, duplicates and losses."`
	SinkLatency time.Duration `placeholder:"TIME" help:"Waited by the sink before it takes a message."`
	Sessions    int           `default:"50" placeholder:"N" help:"Connections at the same time. Default: ${default}."`
	Size        string        `default:"10KiB" placeholder:"SIZE" help:"Of a message, header included. Default: ${default}."`
	Messages    int           `placeholder:"N" help:"Messages in all. Default: as many as fit into --duration."`
	Duration    time.Duration `placeholder:"TIME" help:"After which no further message is begun. Default: 10s, or no end with --messages."`
	Rate        float64       `placeholder:"N" help:"At most so many messages a second. Default: flat out."`
	Sender      string        `placeholder:"ADDRESS" help:"Reverse-path. Default: bench@bench.example."`
	Recipient   string        `placeholder:"ADDRESS" help:"Forward-path; %d in it is replaced by a number below --domains. Default: rcpt@dest.example."`
	Domains     int           `placeholder:"N" help:"Values that %d takes."`
	PID         []int         `name:"pid" placeholder:"PID,…" help:"Processes on this machine whose CPU time and memory are reported, with their children."`
}

// Run measures.
func (b benchCmd) Run(a *app) error {
	size, err := config.ParseSize(b.Size)
	if err != nil {
		return usage("--size: %w", err)
	}
	r, err := bench.Run(a.ctx, bench.Options{
		Address: b.Address, Sink: b.Sink, SinkLatency: b.SinkLatency, Sessions: b.Sessions, Size: int(size), Messages: b.Messages,
		Duration: b.Duration, Rate: b.Rate, Sender: b.Sender, Recipient: b.Recipient, Domains: b.Domains, Processes: b.PID,
	})
	if err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	if a.flags.JSON {
		err = r.WriteJSON(a.out)
	} else {
		err = r.WriteText(a.out)
	}
	if err != nil {
		return err
	}
	if r.Accepted == 0 || r.Missing > 0 {
		return fmt.Errorf("bench: %d messages accepted, %d of them missing at the sink", r.Accepted, r.Missing)
	}
	return nil
}
