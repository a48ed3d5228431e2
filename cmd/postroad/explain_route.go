package main

import (
	"fmt"

	"postroad/cmd/internal/config"
	"postroad/delivery/route"
	"postroad/queue"
	"postroad/queue/address"
)

// explainedRecipient is a recipient of the envelope, and where its mail goes.
type explainedRecipient struct {
	Address      string            `json:"address"`
	ORCPT        string            `json:"orcpt,omitempty"`
	Owner        string            `json:"owner,omitempty"`      // of the list that led there: what its mail has for a reverse-path
	Route        string            `json:"route,omitempty"`      // name of the route, or its conditions; empty: none matches
	Conditions   string            `json:"conditions,omitempty"` // of a route with a name
	NextHop      string            `json:"next_hop"`
	TLS          string            `json:"tls,omitempty"` // not there when nobody is asked
	CA           string            `json:"ca,omitempty"`  // file of the authorities that the host's certificate may come from
	Auth         string            `json:"auth,omitempty"`
	AuthInsecure bool              `json:"auth_insecure,omitempty"`
	ClientCert   string            `json:"client_cert,omitempty"`
	Source       string            `json:"source,omitempty"` // pool of egress sources
	AllowPrivate bool              `json:"allow_private,omitempty"`
	Lost         []explainedLost   `json:"lost,omitempty"`      // other routes whose domain matches
	LostMore     int               `json:"lost_more,omitempty"` // how many of them are not shown
	Hosts        *explainedHosts   `json:"hosts,omitempty"`     // with --hosts
	Retry        *explainedRetry   `json:"retry,omitempty"`     // not there when nobody is asked
	Shaping      *explainedShaping `json:"shaping,omitempty"`   // the same

	hop   route.NextHop
	found route.Route
}

// explainedLost is a route that did not win.
type explainedLost struct {
	Route string `json:"route"`
	Why   string `json:"why"`
}

// maxLost bounds the losers that are shown.
const maxLost = 20

// explainRoutes says where the mail of each recipient goes.
func (x *explanation) explainRoutes(routes route.Table, sender address.Path) {
	for i := range x.Recipients {
		r := &x.Recipients[i]
		from := sender
		if r.Owner != "" && !sender.IsNull() {
			from, _ = address.Parse(r.Owner) // it was printed from one
		}
		r.explain(routes, route.Query{Domain: r.domain(), Sender: from, Client: x.Client, Class: x.class})
	}
}

func (r *explainedRecipient) domain() string {
	path, err := address.Parse(r.Address)
	if err != nil {
		return "" // it was printed from one
	}
	return path.Domain
}

func (r *explainedRecipient) explain(routes route.Table, q route.Query) {
	found := routes.Lookup(q)
	r.found = found
	list, more := routes.Explain(q, maxLost)
	for _, c := range list {
		if !c.Won {
			r.Lost = append(r.Lost, explainedLost{c.Route.String(), c.Why})
		}
	}
	r.LostMore, r.hop, r.NextHop = more, found.NextHop, found.NextHop.String()
	if found.Match != "" {
		r.Route = found.String()
	}
	if found.Name != "" {
		r.Conditions = found.Conditions()
	}
	if r.isAnswered() {
		return
	}
	r.TLS, r.AllowPrivate = string(config.RouteTLSOpportunistic), found.AllowPrivate
	if found.TLS != nil {
		r.TLS = string(config.RouteTLSOf(*found.TLS))
	}
	if found.CA != nil {
		r.CA = found.CA.File
	}
	r.Auth, r.AuthInsecure, r.ClientCert, r.Source = found.Auth, found.AuthInsecure, found.ClientCert, found.Source
}

// isAnswered reports that the route itself says what becomes of the mail.
func (r *explainedRecipient) isAnswered() bool { return r.hop.Discard || r.hop.Reply != nil }

// explainedTarget is a recipient before its route is looked up.
func explainedTarget(r queue.Recipient) explainedRecipient {
	x := explainedRecipient{Address: r.Path.String(), ORCPT: r.ORCPT}
	if !r.Owner.IsNull() {
		x.Owner = r.Owner.String()
	}
	return x
}

// showWay prints where the mail of a recipient goes, and why not elsewhere.
func (r *explainedRecipient) showWay(line func(name, format string, args ...any)) {
	line("", "  %s", r.way())
	if r.Hosts != nil {
		r.Hosts.show(func(format string, args ...any) { line("", "    "+format, args...) })
	}
	if r.Retry != nil && r.Retry.isOwn {
		line("", "    tried again %s; given up after %s", r.Retry.Schedule, r.Retry.MaxAge)
	}
	for _, lost := range r.Lost {
		line("", "    not %s: %s", clean(lost.Route, 300), clean(lost.Why, 300))
	}
	if r.LostMore > 0 {
		line("", "    and %d more routes not", r.LostMore)
	}
	if r.Shaping != nil {
		r.Shaping.show(func(format string, args ...any) { line("", "    "+format, args...) })
	}
}

// way says where the mail of a recipient goes.
func (r *explainedRecipient) way() string {
	var text string
	switch hop := r.hop; {
	case hop.Discard:
		text = "thrown away, nobody is told"
	case hop.Reply != nil && hop.Reply.Code < 500:
		text = "waits: " + clean(r.NextHop, 500)
	case hop.Reply != nil:
		text = "returned to its sender: " + clean(r.NextHop, 500)
	case hop.IsMX() && hop.MX != "":
		text = "to the MX hosts of " + hop.MX
	case hop.IsMX():
		text = "to the MX hosts of its domain"
	default:
		text = "to " + r.NextHop
	}
	if r.TLS != "" {
		text += ", TLS " + r.TLS
	}
	if r.CA != "" {
		text += " by " + clean(r.CA, 200)
	}
	if r.Auth != "" {
		text += ", login smarthosts/" + r.Auth
		if r.AuthInsecure {
			text += " whoever the host is"
		}
	}
	if r.ClientCert != "" {
		text += ", certificate tls/" + r.ClientCert
	}
	if r.Source != "" {
		text += ", from the pool " + r.Source
	}
	switch {
	case r.Route == "":
		return text + " (no route matches)"
	case r.Conditions != "":
		return text + fmt.Sprintf(" (route %s: %s)", clean(r.Route, 200), clean(r.Conditions, 300))
	}
	return text + " (route for " + clean(r.Route, 300) + ")"
}
