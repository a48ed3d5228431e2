package dkim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"

	"postroad/cmd/internal/config"
	"postroad/delivery/txt"
	"postroad/signer/rotation"
)

// DNS asks what records there are.
type DNS struct{ client *txt.Client }

var _ rotation.Publication = (*DNS)(nil)

// NewDNS takes the resolvers of the configuration, or those of this machine.
func NewDNS(c *config.Config, log *slog.Logger) (*DNS, error) {
	r := &c.Signer.Rotation
	o := txt.Options{AuthoritativePort: uint16(r.NameServerPort), Logger: log}
	for _, text := range r.Resolvers {
		address, err := netip.ParseAddrPort(text)
		if err != nil {
			return nil, fmt.Errorf("signer.rotation.resolvers: %w", err)
		}
		o.Resolvers = append(o.Resolvers, address)
	}
	client, err := txt.New(o)
	if err != nil {
		return nil, fmt.Errorf("signer.rotation.resolvers: %w", err)
	}
	return &DNS{client}, nil
}

// Lookup implements rotation.Publication.
func (d *DNS) Lookup(ctx context.Context, name string) (rotation.Answers, error) {
	view, err := d.client.Look(ctx, name)
	if err != nil {
		return rotation.Answers{}, err
	}
	return answersOf(view), nil
}

// Resolve asks the resolvers only, as a receiver does; see txt.Client.Resolve.
func (d *DNS) Resolve(ctx context.Context, name string) ([]string, error) {
	return d.client.Resolve(ctx, name)
}

// answersOf leaves out what says nothing about the record.
func answersOf(view txt.View) rotation.Answers {
	out := rotation.Answers{NegativeTTL: view.NegativeTTL}
	host := func(a *txt.Answer) string { h, _, _ := strings.Cut(a.Server, " "); return h + " " + a.Name }
	reached := make(map[string]bool)
	for i := range view.Answers {
		if a := &view.Answers[i]; a.Err == nil && !a.IsResolver() {
			reached[host(a)] = true
		}
	}
	for i := range view.Answers {
		a := &view.Answers[i]
		switch {
		case a.Err == nil && !a.IsResolver() && len(a.Records) == 0 && len(a.CNAME) > 0:
			continue // an alias into another zone: the answers of its servers follow
		case errors.Is(a.Err, txt.ErrNoRoute) && reached[host(a)]:
			continue // here is no IPv6, say, and the same server was asked at its other address
		}
		out.Answers = append(out.Answers, rotation.Answer{
			Server: a.Server, IsAuthoritative: !a.IsResolver(), Records: a.Records, TTL: a.TTL, Err: a.Err,
		})
	}
	return out
}
