package config

import (
	_ "embed" // the comments are the reference
	"strconv"
	"strings"

	"postroad/delivery/throttle"
	"postroad/queue/address"
)

//go:embed shaping.go
var shapingSource string

// Shaping limits what goes to some sites, all delivery processes together. All that a rule names must match; it names domains, sites or
// mx, or none of them for everything. For each limit the most specific rule that gives it counts: docs/delivery.md has the order.
// `postroad limit set` changes limits while everything runs.
type Shaping struct {
	// Domains are those of recipients: example.com, or .example.com for every domain below it. What goes to a domain of its own rule is
	// counted apart from the rest of its site.
	Domains []string `yaml:"domains"`

	// Sites are names of sites, as `site list` and events show them.
	Sites []string `yaml:"sites"`

	// MX are names of MX hosts, or of domains that they lie below: google.com is every site with a host of that name or below it.
	MX []string `yaml:"mx"`

	// Sources are egress sources. Empty: every source, each with these limits of its own.
	Sources []string `yaml:"sources"`

	// Connections is how many there are at a time. 0 leaves it to the next rule; where none says it, 20.
	//
	// Change it to what the receiver asks for, or for a smart host that can take more.
	Connections int `yaml:"connections"`

	// Rate is how many messages go there in some time, at even distances: 100/s, 6000/h, 30/5m. Empty leaves it to the next rule; where none
	// says it there is no limit.
	Rate string `yaml:"rate"`

	// Burst is how many messages of the rate may go at once after a rest.
	Burst int `yaml:"burst"`

	// ConnectionRate is how many new connections are made in some time, as in rate.
	ConnectionRate string `yaml:"connection_rate"`

	// MessagesPerConnection is after how many messages a connection is closed. 0 leaves it to the next rule; where none says it, 100.
	MessagesPerConnection int `yaml:"messages_per_connection"`

	// PerSite counts all sources together.
	//
	// Change it to true for receivers that limit a sender by its domain, not by its address.
	PerSite bool `yaml:"per_site"`
}

// Rules are the rules that an entry stands for, one for each name. What is wrong with it has been reported by Check.
func (s *Shaping) Rules() []throttle.Rule {
	r := throttle.Rule{Connections: s.Connections, Messages: s.MessagesPerConnection, PerSite: s.PerSite}
	r.Rate, _ = throttle.ParseRate(s.Rate)
	r.Rate.Burst = s.Burst
	r.ConnectionRate, _ = throttle.ParseRate(s.ConnectionRate)
	var rules []throttle.Rule
	for _, names := range []struct {
		list []string
		set  func(*throttle.Rule, string)
	}{
		{s.Domains, func(r *throttle.Rule, name string) { r.Domain = plainDomain(name) }},
		{s.Sites, func(r *throttle.Rule, name string) { r.Site = name }},
		{s.MX, func(r *throttle.Rule, name string) { r.MX = name }},
	} {
		for _, name := range names.list {
			one := r
			names.set(&one, name)
			rules = append(rules, one)
		}
	}
	if len(rules) == 0 {
		rules = []throttle.Rule{r}
	}
	if len(s.Sources) == 0 {
		return rules
	}
	var all []throttle.Rule
	for _, source := range s.Sources {
		for _, one := range rules {
			one.Source = source
			all = append(all, one)
		}
	}
	return all
}

// plainDomain brings a domain, or .domain, into the form in which jobs have it.
func plainDomain(name string) string {
	plain, err := address.Normalize(strings.TrimPrefix(name, "."))
	switch {
	case err != nil:
		return name
	case strings.HasPrefix(name, "."):
		return "." + plain
	}
	return plain
}

// ShapingRules are the rules of all entries. Each has the entry's name as its origin.
func (d *Delivery) ShapingRules() []throttle.Rule {
	var rules []throttle.Rule
	for i := range d.Shaping {
		for _, r := range d.Shaping[i].Rules() {
			r.Origin = shapingName(i)
			rules = append(rules, r)
		}
	}
	return rules
}

func shapingName(i int) string { return "delivery.shaping[" + strconv.Itoa(i) + "]" }

func (d *Delivery) checkShaping(f *faults) {
	for i := range d.Shaping {
		checkShaping(f, shapingName(i), &d.Shaping[i])
	}
}

func checkShaping(f *faults, setting string, s *Shaping) {
	kinds := 0
	for _, list := range [][]string{s.Domains, s.Sites, s.MX} {
		if len(list) > 0 {
			kinds++
		}
	}
	if kinds > 1 {
		f.add(setting, "names more than one of domains, sites and mx: write a rule for each")
	}
	for j, name := range s.Domains {
		if _, err := address.Normalize(strings.TrimPrefix(name, ".")); err != nil {
			f.add(setting+".domains["+strconv.Itoa(j)+"]", "%q is neither example.com nor .example.com", name)
		}
	}
	for j, name := range s.MX {
		if _, err := address.Normalize(name); err != nil {
			f.add(setting+".mx["+strconv.Itoa(j)+"]", "%q is no name of a host or domain", name)
		}
	}
	for _, rate := range []struct{ name, value string }{{"rate", s.Rate}, {"connection_rate", s.ConnectionRate}} {
		if rate.value == "" {
			continue
		}
		if _, err := throttle.ParseRate(rate.value); err != nil {
			f.add(setting+"."+rate.name, "%v", err)
		}
	}
	switch {
	case s.Connections < 0 || s.MessagesPerConnection < 0 || s.Burst < 0:
		f.add(setting, "a limit is less than 0: remove the line for none")
	case s.Burst > 0 && s.Rate == "":
		f.add(setting+".burst", "belongs to a rate: give one, or take it away")
	case s.Connections == 0 && s.MessagesPerConnection == 0 && s.Rate == "" && s.ConnectionRate == "":
		f.add(setting, "limits nothing: give connections, rate, connection_rate or messages_per_connection")
	}
}
