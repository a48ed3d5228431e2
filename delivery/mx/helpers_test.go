package mx_test

import (
	"context"
	"sync/atomic"

	"postroad/delivery/mx"
	"postroad/delivery/mx/mxtest"
)

// counting counts look-ups of hosts.
type counting struct {
	mxtest.Records
	hosts atomic.Int64
}

func (c *counting) LookupHost(ctx context.Context, host string) (mx.HostAnswer, error) {
	c.hosts.Add(1)
	return c.Records.LookupHost(ctx, host)
}
