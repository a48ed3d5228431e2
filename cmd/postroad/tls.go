package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"postroad/cmd/internal/config"
)

type tlsCmd struct {
	EnableClient     tlsEnableClientCmd     `cmd:"" name:"enable-client" help:"Say whether outgoing connections use TLS wherever it is offered, which is the default, and what keeps them from it. Nothing is changed. Exit status 1: settings are not the default."`
	AllDefaultClient tlsAllDefaultClientCmd `cmd:"" name:"all-default-client" help:"Exit status 0 if all TLS settings of outgoing connections are the default, else 1. Prints nothing."`
}

// setTLS is a TLS setting of outgoing connections that somebody has set.
type setTLS struct {
	Setting string `json:"setting"`
	Value   string `json:"value"`
	Default string `json:"default"`
}

// clientTLS lists the TLS settings of outgoing connections that are not their default.
func clientTLS(a *app) ([]setTLS, error) {
	c, _, err := a.load()
	if err != nil {
		return nil, err
	}
	routes, err := c.Delivery.AllRoutes()
	if err != nil {
		return nil, err
	}
	list := []setTLS{}
	for _, r := range routes {
		if r.TLS != config.RouteTLSOpportunistic {
			name := cmp.Or(r.Name, strings.Join(r.Domains, " "))
			list = append(list, setTLS{"delivery.routes, " + name + ": tls", string(r.TLS), string(config.RouteTLSOpportunistic)})
		}
	}
	is, def := c.Delivery.TLSPolicies, config.Default().Delivery.TLSPolicies
	if is.DANE != def.DANE {
		list = append(list, setTLS{"delivery.tls_policies.dane", fmt.Sprint(is.DANE), fmt.Sprint(def.DANE)})
	}
	if is.MTASTS != def.MTASTS {
		list = append(list, setTLS{"delivery.tls_policies.mta_sts", fmt.Sprint(is.MTASTS), fmt.Sprint(def.MTASTS)})
	}
	if !slices.Equal(is.Ignore, def.Ignore) {
		list = append(list, setTLS{"delivery.tls_policies.ignore", strings.Join(is.Ignore, " "), "none"})
	}
	return list, nil
}

type tlsEnableClientCmd struct{}

// Run prints. It never changes a file: what somebody has set stays.
func (tlsEnableClientCmd) Run(a *app) error {
	list, err := clientTLS(a)
	if err != nil {
		return err
	}
	switch {
	case a.flags.JSON:
		if err := a.print(map[string]any{"default": len(list) == 0, "set": list}); err != nil {
			return err
		}
	case len(list) == 0:
		a.say("TLS is on for outgoing connections: every host that offers it gets it, and what a domain asks for by DANE or MTA-STS is kept. Nothing to do.\n")
	default:
		a.say("TLS of outgoing connections has been set by somebody, and nothing was changed. For TLS wherever it is offered, write:\n")
		for _, s := range list {
			a.say("  %s: %s (now %s)\n", s.Setting, s.Default, s.Value)
		}
	}
	if len(list) > 0 {
		return fmt.Errorf("%w: TLS settings are not the default", errSaid)
	}
	return nil
}

type tlsAllDefaultClientCmd struct{}

// Run says it by the exit status alone.
func (tlsAllDefaultClientCmd) Run(a *app) error {
	list, err := clientTLS(a)
	if err == nil && len(list) > 0 {
		err = fmt.Errorf("%w: TLS settings are not the default", errSaid)
	}
	return err
}
