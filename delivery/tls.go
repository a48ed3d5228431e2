package delivery

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	"postroad/delivery/smtpc"
	"postroad/delivery/tlspolicy"
	"postroad/delivery/tlsrpt"
)

// TLSReports counts sessions for the reports that domains ask for (RFC 8460).
type TLSReports interface {
	// Note counts one session. It never blocks.
	Note(r tlsrpt.Result)
}

// errBroken stands for the handshake that was not tried, because one has failed lately.
var errBroken = fmt.Errorf("%w lately", smtpc.ErrTLSHandshake)

// policyPatience bounds the wait for a policy that is fetched; the fetch goes on.
const policyPatience = 30 * time.Second

// needsTLS reports that REQUIRETLS binds this job: a notification asks for it, and goes on without (RFC 8689 §5).
func (a *attempt) needsTLS() bool { return a.job.Flags.RequireTLS && !a.job.ReversePath.IsNull() }

// findPolicy finds out what the domain wants of TLS, once its hosts are known.
func (a *attempt) findPolicy(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, policyPatience)
	defer cancel()
	var roots *x509.CertPool
	if a.route.CA != nil {
		roots = a.route.CA.Pool
	}
	a.policy = a.w.o.TLSPolicies.Domain(ctx, tlspolicy.Mail{
		Roots:  roots,
		Domain: cmp.Or(a.route.NextHop.MX, a.job.Domain), Floor: a.key.tls, IsMX: a.route.NextHop.IsMX(),
		RequireTLS: a.needsTLS(), Optional: a.job.Flags.TLSOptional,
	})
	hasSecure := false
	for _, t := range a.dest.targets {
		hasSecure = hasSecure || t.secureMX
	}
	a.key.policy = a.policy.Key(hasSecure)
	if a.route.CA != nil {
		a.key.policy += "\nca " + a.route.CA.Sum
	}
}

// dialTLS dials one address as the plan for its host says; where that is content with clear text, a second time without TLS when the
// handshake fails (RFC 7435), and without from then on.
func (a *attempt) dialTLS(ctx context.Context, t target, o smtpc.Options) (conn, error) {
	plan, err := a.w.o.TLSPolicies.Host(ctx, a.policy, tlspolicy.Host{
		Name: t.host, Canonical: t.canonical, Port: t.addr.Port(), ImplicitTLS: t.tls, SecureMX: t.secureMX, Secure: t.secure})
	if err != nil {
		a.report(ctx, plan, t, o, nil, err)
		return nil, err
	}
	plan.Apply(&o)
	if plan.MayFallBack() && a.w.brokenTLS.has(t.addr) {
		o.TLS = smtpc.TLSNone
	}
	c, err := a.w.dial(ctx, t.host, t.addr, o)
	if o.TLS != smtpc.TLSNone {
		a.report(ctx, plan, t, o, c, err)
	} else if err == nil {
		a.report(ctx, plan, t, o, nil, errBroken) // for nothing, where the plan wants no TLS
	}
	if err != nil && o.TLS == smtpc.TLSMay && errors.Is(err, smtpc.ErrTLSHandshake) && ctx.Err() == nil {
		a.w.o.Logger.Info("tls handshake failed, clear text it is", "site", a.site, "host", t.host, "error", err)
		a.w.brokenTLS.add(t.addr)
		a.w.metrics.tls.WithLabelValues("fallback").Inc()
		o.TLS = smtpc.TLSNone
		c, err = a.w.dial(ctx, t.host, t.addr, o)
	}
	if err != nil {
		return nil, plan.Refuse(err)
	}
	a.protection = plan.Kind
	if only := plan.OnlyFor(); only != "" {
		a.key.policy += ";only " + only
	}
	a.w.metrics.tls.WithLabelValues(tlsLabel(c)).Inc()
	a.w.metrics.tlsPolicy.WithLabelValues(string(plan.Kind)).Inc()
	return c, nil
}

// report counts a session, or that there was none for reasons of TLS.
func (a *attempt) report(ctx context.Context, plan tlspolicy.Plan, t target, o smtpc.Options, c conn, err error) {
	if ctx.Err() != nil {
		return
	}
	var state *tls.ConnectionState
	if c != nil {
		state = c.TLSState()
	}
	for _, r := range plan.Results(state, err) {
		if r.Failure.Result != tlsrpt.OK {
			a.w.metrics.tlsFailures.WithLabelValues(string(r.Failure.Result)).Inc()
			r.Failure.ReceivingIP = t.addr.Addr().String()
			if o.LocalAddr.IsValid() {
				r.Failure.SendingIP = o.LocalAddr.String()
			}
		}
		if a.w.o.TLSReports != nil {
			a.w.o.TLSReports.Note(r)
		}
	}
}

// isTLS reports a failure of the TLS that this job wants: others may be content with less.
func isTLS(err error) bool {
	_, is := errors.AsType[*tlspolicy.Failure](err)
	return is || errors.Is(err, smtpc.ErrTLSHandshake) || errors.Is(err, smtpc.ErrTLSRequired)
}

// tlsReply is what a policy's refusal means for the recipients.
func tlsReply(f *tlspolicy.Failure) smtpc.Reply {
	r := localReply(f.Code(), f.Enhanced, f.Text)
	r.Phase = smtpc.PhaseStartTLS
	if f.Permanent {
		r.Phase = phaseRoute
	}
	return r
}

func tlsText(state *tls.ConnectionState, kind tlspolicy.Kind) string {
	if state == nil {
		return ""
	}
	text := strings.ReplaceAll(tls.VersionName(state.Version), " ", "") + " " + tls.CipherSuiteName(state.CipherSuite)
	if kind != "" {
		text += " " + string(kind)
	}
	return text
}

func tlsLabel(c conn) string {
	state := c.TLSState()
	if state == nil {
		return "none"
	}
	return tlsVersions[state.Version]
}

// tlsVersions are the label values of the versions that are in use; others get an empty one.
var tlsVersions = map[uint16]string{0x0303: "1.2", 0x0304: "1.3"}
