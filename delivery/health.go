package delivery

import (
	"time"

	"postroad/delivery/smtpc"
	"postroad/delivery/throttle"
)

// health remembers whether a site could be reached. After deadAfter failures in a row it is dead: its jobs are turned
// away with the last failure as the reason. When the time is over, one job at a time may probe it; one success, and all
// may come again (RFC 5321 §4.5.4.1 wants such a state kept for each host).
type health struct {
	failures int           // in a row
	deadTill time.Time     // zero: alive
	pause    time.Duration // before the next probe
	probing  bool          // a probe is on its way
	reply    smtpc.Reply   // of the last failure
	remote   string        // host that gave it
	expires  time.Time     // then all this is too old to be told
}

const (
	deadAfter   = 3
	firstPause  = time.Minute
	maxPause    = 5 * time.Minute
	healthKept  = time.Hour
	reasonStart = "site is not tried for now: "
)

func (h *health) isDead() bool    { return !h.deadTill.IsZero() }
func (h *health) isHealthy() bool { return h.failures == 0 && !h.isDead() && !h.probing }

// admit turns a job away when the site is dead, or lets it probe.
func (h *health) admit(now time.Time) (refused *refusal, isProbe bool) {
	switch {
	case !h.isDead():
		return nil, false
	case h.probing || now.Before(h.deadTill):
		return h.refuse(), false
	}
	h.probing = true
	return nil, true
}

func (h *health) refuse() *refusal {
	reply := h.reply
	reply.Lines = []string{reasonStart + reply.Text()}
	return &refusal{isDead: true, reply: reply, remote: h.remote}
}

// judge takes note of how a dialogue went and reports whether the site has died by it.
func (h *health) judge(now time.Time, v verdict, isProbe bool) (hasDied bool) {
	if isProbe {
		h.probing = false
	}
	switch {
	case v.isAlive:
		*h = health{probing: h.probing}
	case v.failure != nil:
		h.failures++
		h.reply, h.remote, h.expires = *v.failure, v.remote, now.Add(healthKept)
		// Dialogues that were under way when the site died say nothing new.
		if isProbe || !h.isDead() && h.failures >= deadAfter {
			h.pause = min(max(2*h.pause, firstPause), maxPause)
			h.deadTill = now.Add(h.pause)
			return true
		}
	}
	return false
}

// know takes over what the cluster knows of a path: nobody could be reached there. News may make the next probe earlier, and are not for paths
// that nobody here asks for.
func (g *gate) know(path string, c throttle.Circuit, isNews bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, known := g.sites[path]; !known && isNews {
		return
	}
	s := g.site(path)
	now := time.Now()
	till := c.Until
	if c.ProbeUntil.After(till) && c.ProbeUntil.After(now) {
		till = c.ProbeUntil // another process probes it
	}
	if s.probing || s.isDead() && !isNews && !till.After(s.deadTill) {
		return
	}
	s.health = health{
		failures: deadAfter, deadTill: till, pause: c.Pause, remote: c.Host, expires: now.Add(healthKept),
		reply: smtpc.Reply{Code: c.Code, Enhanced: c.Enhanced, Lines: []string{c.Text}, Local: c.Local},
	}
	s.turnAway(now)
}

// revive forgets that a path was dead: another process has reached it.
func (g *gate) revive(path string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s, known := g.sites[path]; known && s.isDead() {
		s.health = health{probing: s.probing}
		g.forget(s)
	}
}

// circuit is what others are told of a health.
func (h *health) circuit(path string) throttle.Circuit {
	return throttle.Circuit{Path: path, Until: h.deadTill, Pause: h.pause, Code: h.reply.Code, Enhanced: h.reply.Enhanced, Text: h.reply.Text(),
		Local: h.reply.Local, Host: h.remote}
}
