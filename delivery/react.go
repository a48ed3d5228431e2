package delivery

import (
	"strings"
	"time"

	"postroad/delivery/smtpc"
	"postroad/delivery/throttle"
)

// react does what the reactions say about the replies of hosts, once for each that differs.
func (a *attempt) react() {
	if !a.tried || a.site == "" {
		return
	}
	said := make([]string, 0, 1)
	for i, r := range a.replies {
		if r.Local || r.Code < 400 {
			continue
		}
		text := replyText(r)
		isNew := true
		for _, s := range said {
			isNew = isNew && s != text
		}
		reaction := a.w.o.Reactions.Find(a.limits.Path, throttle.Said{Hosts: a.hosts(), Code: r.Code, Enhanced: r.Enhanced, Phase: string(r.Phase), Text: r.Text()})
		if reaction == nil {
			continue
		}
		a.replies[i] = overrule(r, reaction)
		if isNew {
			said = append(said, text)
			a.carryOut(reaction, text)
		}
	}
}

func (a *attempt) hosts() []string {
	hosts := make([]string, 0, len(a.dest.targets)+1)
	for _, t := range a.dest.targets {
		hosts = append(hosts, t.host)
	}
	if a.host != "" {
		hosts = append(hosts, a.host)
	}
	return hosts
}

// overrule makes of a refusal what a reaction wants it to be, in its own words.
func overrule(r smtpc.Reply, reaction *throttle.Reaction) smtpc.Reply {
	switch {
	case reaction.Has(throttle.ActionDefer) && judge(r) == bounced:
		r.Code, r.Enhanced = 451, "4"+strings.TrimPrefix(r.Enhanced, "5")
	case reaction.Has(throttle.ActionBounce) && judge(r) == deferred:
		r.Code, r.Enhanced, r.Phase = 550, "5"+strings.TrimPrefix(r.Enhanced, "4"), phaseRoute
	default:
		return r
	}
	if len(r.Enhanced) < 5 {
		r.Enhanced = ""
	}
	return r
}

const maxReactionText = 200

func (a *attempt) carryOut(r *throttle.Reaction, text string) {
	now := time.Now()
	reason := r.Name + ": " + text[:min(len(text), maxReactionText)]
	sites := a.w.shaping.sites
	isSuspended := r.Has(throttle.ActionSuspend)
	if r.Has(throttle.ActionSwitch) {
		if a.egress != "" {
			sites.MarkBad(throttle.Mark{Source: a.egress, Site: a.site, Reason: reason, Since: now, Until: now.Add(r.For)})
		} else {
			isSuspended = true // there is no other source to take
		}
	}
	if isSuspended {
		sites.Suspend(throttle.Suspension{Name: a.limits.Path, Owner: "reaction", Reason: reason, Since: now, Until: now.Add(r.For), Auto: true})
	}
	if r.Has(throttle.ActionSlow) {
		sites.SlowDown(throttle.Slow{Path: a.limits.Path, Reason: reason, Since: now, Until: now.Add(r.For)})
	}
	for _, action := range r.Actions {
		a.w.metrics.reactions.WithLabelValues(string(action)).Inc()
	}
}
