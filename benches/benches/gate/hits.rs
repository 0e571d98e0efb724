//! Questions that memory answers.

use std::{sync::Arc, time::Duration};

use saas_benches::{
    Contender,
    field::{self, Floor, Plans, Popularity, Questions},
    race, ratio,
};
use saas_core::{FeatureKey, TenantId};
use saas_entitlements::{Entitlements, FeatureHandle, Snapshot};
use uuid::Uuid;

type Moka = moka::sync::Cache<Uuid, Arc<field::Bits>, foldhash::fast::RandomState>;

/// The same tenants in all contenders.
pub(crate) struct Field {
    pub(crate) tenants: usize,
    pub(crate) plans: Plans,
    pub(crate) gate: Entitlements,
    pub(crate) handles: Vec<FeatureHandle>,
    keys: Vec<FeatureKey>,
    floor: Floor,
    moka: Moka,
    held: Arc<Snapshot>,
}

impl Field {
    pub(crate) async fn new(tenants: usize) -> Self {
        let plans = Plans::new(tenants);
        let gate = field::gate(&field::catalog(), plans.clone(), tenants).await;
        let moka = moka::sync::Cache::builder()
            .max_capacity(tenants as u64 * 2)
            .time_to_live(Duration::from_secs(3_600))
            .build_with_hasher(foldhash::fast::RandomState::default());
        for tenant in 0..tenants {
            moka.insert(field::tenant_id(tenant).as_uuid(), Arc::new(field::Bits(field::bits(field::plan_of(tenant)))));
        }
        let held = gate.snapshot(field::tenant_id(tenants / 2)).await;
        assert!(gate.stats().evictions * 10_000 <= tenants as u64, "every tenant fits");
        let (handles, keys) = (field::handles(&gate), field::keys(&gate));
        Self { tenants, plans, gate, handles, keys, floor: field::floor(tenants), moka, held }
    }

    /// How many thousand tenants there are, for the names of results.
    pub(crate) fn size(&self) -> String {
        format!("{}k", self.tenants / 1_000)
    }

    #[inline(always)]
    pub(crate) fn ask_floor(&self, id: TenantId, feature: usize) -> bool {
        self.floor.get(&id.as_uuid()).is_some_and(|bits| bits.0 >> feature & 1 == 1)
    }

    #[inline(always)]
    pub(crate) fn ask_gate(&self, id: TenantId, feature: usize) -> bool {
        self.gate.is_enabled(id, self.handles[feature]).if_ready() == Some(true)
    }

    fn remembers(&self, id: TenantId) -> bool {
        self.gate.is_enabled(id, self.handles[0]).if_ready().is_some()
    }

    #[inline(always)]
    fn ask_by_name(&self, id: TenantId, feature: usize) -> bool {
        self.gate.is_feature_enabled(id, &self.keys[feature]).if_ready() == Some(true)
    }

    #[inline(always)]
    fn ask_moka(&self, id: TenantId, feature: usize) -> bool {
        self.moka.get(&id.as_uuid()).is_some_and(|bits| bits.0 >> feature & 1 == 1)
    }

    /// All contenders give the expected answers, and the gate's cost no allocation.
    fn check(&self, questions: &Questions) {
        for (tenant, id, feature) in questions.of_thread(0).iter().take(400) {
            let feature = usize::from(*feature);
            let expected = field::grants(field::plan_of(*tenant), feature);
            assert_eq!(self.gate.is_enabled(*id, self.handles[feature]).if_ready(), Some(expected), "gate");
            let answers = [self.ask_floor(*id, feature), self.ask_by_name(*id, feature), self.ask_moka(*id, feature)];
            assert_eq!(answers, [expected; 3], "floor, by name, moka");
        }
        // A few tenants may have had to make room for others: their questions are misses.
        let hits: Vec<_> = questions.of_thread(0).iter().filter(|(_, id, _)| self.remembers(*id)).collect();
        let counted = allocation_counter::measure(|| {
            for (_, id, feature) in hits {
                let feature = usize::from(*feature);
                std::hint::black_box((self.ask_gate(*id, feature), self.ask_by_name(*id, feature)));
            }
        });
        assert_eq!(counted.count_total, 0, "a hit allocates nothing");
    }

    /// One and two threads in the same race.
    pub(crate) fn race(&self, popularity: Popularity, rounds: usize) {
        let questions = &Questions::new(self.tenants, popularity);
        self.check(questions);
        let floor = |_, id, feature| self.ask_floor(id, feature);
        let gate = |_, id, feature| self.ask_gate(id, feature);
        let by_name = |_, id, feature| self.ask_by_name(id, feature);
        let moka = |_, id, feature| self.ask_moka(id, feature);
        // As a request does: one snapshot, then questions. The snapshot is held, the questions vary.
        let held = |_, _, feature: usize| self.held.is_enabled(self.handles[feature]);
        let mut contenders = Vec::new();
        for threads in [1, 2] {
            contenders.push(Contender::new("floor", move || questions.ask(threads, floor)));
            contenders.push(Contender::new("gate", move || questions.ask(threads, gate)));
            contenders.push(Contender::new("gate by name", move || questions.ask(threads, by_name)));
            contenders.push(Contender::new("held snapshot", move || questions.ask(threads, held)));
            contenders.push(Contender::new("moka", move || questions.ask(threads, moka)));
        }
        let medians = race(rounds, &mut contenders);
        let [one, two] = [&medians[..5], &medians[5..]];
        for (threads, medians) in [(1, one), (2, two)] {
            let [floor, gate, by_name, held, moka] = *medians else { unreachable!("five contenders") };
            let cell = format!("{} {} {threads}t", self.size(), popularity.name());
            println!(
                "{cell}: floor {floor:.1} ns, gate {gate:.1} ns, by name {by_name:.1} ns, held snapshot {held:.1} ns, moka \
                 {moka:.0} ns"
            );
            ratio(&format!("gate_hit/floor {cell}"), gate / floor, true, 1.6);
            ratio(&format!("gate_hit_by_name/floor {cell}"), by_name / floor, true, 4.0);
            ratio(&format!("second_question/floor {cell}"), held / floor, true, 0.4);
            ratio(&format!("moka/gate_hit {cell}"), moka / gate, false, 12.0);
        }
        let cell = format!("{} {}", self.size(), popularity.name());
        println!("{cell}: two threads cost the floor {:.2} of one", two[0] / one[0]);
        ratio(&format!("gate_hit 2t/1t {cell}"), two[1] / one[1], true, 1.15);
    }
}
